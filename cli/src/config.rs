//! Settings: flags win over the environment, that over the TOML file, that over the defaults. Checked once,
//! here; what leaves this file is plain values.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use gfs_chunkserver::ChunkserverConfig;
use gfs_master::{MasterConfig, Start, identity};
use gfs_proto::size::{ChunkBytes, PAYLOAD_BYTES_MAX};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::args;
use crate::exit::usage;
use crate::units::{Bytes, Time};

/// How long a user command tries before it gives up.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// The TOML file of a user command.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ClientFile {
    masters: Vec<String>,
    timeout: Option<Time>,
    json: bool,
}

/// The TOML file of a master.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct MasterFile {
    data: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    bootstrap: bool,
    join: Vec<String>,
    shadow: bool,
    chunk_size: Option<Bytes>,
    replication: Option<u32>,
    trash: Option<Time>,
}

/// The TOML file of a chunkserver.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ChunkserverFile {
    data: Vec<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    masters: Vec<String>,
    rack: Option<String>,
    buffer: Option<Bytes>,
}

/// Settings of a user command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Client {
    pub(crate) masters: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
}

impl Client {
    /// Puts together what stands before the command, after it, and in the file.
    ///
    /// # Errors
    /// Usage: no masters, or a file that can't be read.
    pub(crate) fn settle(top: &args::TopSettings, own: &args::ClientSettings) -> Result<Self> {
        let file: ClientFile = read_file(own.config.as_deref().or(top.config.as_deref()))?;
        let masters = masters_of([&own.masters, &top.masters, &file.masters]).ok_or_else(|| {
            usage("which cluster? give --masters HOST:PORT,.. or set GFS_MASTERS (`gfs dev` prints the line to paste)")
        })?;
        check_addresses("--masters", &masters)?;
        let timeout = own.timeout.or(top.timeout).or(file.timeout.map(|time| time.0));
        Ok(Self {
            masters,
            timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
            json: own.json || top.json || file.json,
        })
    }
}

/// The first list that says something: GFS_MASTERS= with nothing behind it is as good as unset.
fn masters_of(lists: [&Vec<String>; 3]) -> Option<Vec<String>> {
    lists.into_iter().find(|list| list.iter().any(|address| !address.is_empty())).cloned()
}

/// Settings of a master, and where it listens.
///
/// # Errors
/// Usage: a setting is missing or makes no sense.
pub(crate) fn master(top: &args::TopSettings, flags: args::Master) -> Result<(MasterConfig, String)> {
    let file: MasterFile = read_file(flags.config.as_deref().or(top.config.as_deref()))?;
    let given = [
        ("--chunk-size", flags.chunk_size.is_some()),
        ("--replication", flags.replication.is_some()),
        ("--trash", flags.trash.is_some()),
    ];
    let data = flags.data.or(file.data).ok_or_else(|| usage("--data DIR is missing"))?;
    let listen = flags.listen.or(file.listen).ok_or_else(|| usage("--listen HOST:PORT is missing"))?;
    let advertise = flags.advertise.or(file.advertise);
    check_listen(&listen, advertise.as_deref())?;
    let join = if flags.join.is_empty() && !flags.bootstrap { file.join } else { flags.join };
    let bootstrap = flags.bootstrap || (file.bootstrap && join.is_empty());
    let start = match (bootstrap, join.is_empty()) {
        (true, _) => Start::Bootstrap,
        (false, false) => Start::Join(join),
        (false, true) => {
            return Err(usage(
                "give --bootstrap to make a new cluster, or --join HOST:PORT,.. to join one (a directory that \
                 holds a master already goes on as that one with either)",
            ));
        }
    };
    if let Start::Join(masters) = &start {
        check_addresses("--join", masters)?;
    }
    let mut config = MasterConfig::new(data, start);
    config.advertise = advertise;
    config.shadow = flags.shadow || file.shadow;
    if let Some(bytes) = flags.chunk_size.or(file.chunk_size.map(|size| size.0)) {
        config.chunk_bytes = ChunkBytes::parse(bytes).map_err(usage)?;
    }
    if let Some(replication) = flags.replication.or(file.replication) {
        config.replication = replication;
    }
    if let Some(trash) = flags.trash.or(file.trash.map(|time| time.0)) {
        config.trash = trash;
    }
    config.check()?;
    let ignored = ignored(&given, &config);
    if !ignored.is_empty() {
        tracing::warn!(flags = ignored.join(" "), "ignored: they were settled when the cluster was made");
    }
    Ok((config, listen))
}

/// Which of the flags that were given mean nothing, since there is a cluster already.
fn ignored(given: &[(&'static str, bool)], config: &MasterConfig) -> Vec<&'static str> {
    let makes_a_cluster = config.start == Start::Bootstrap && !identity::has_started(&config.data);
    let ignored = given.iter().filter(|(_, given)| *given && !makes_a_cluster);
    ignored.map(|(flag, _)| *flag).collect()
}

/// Settings of a chunkserver, and where it listens.
///
/// # Errors
/// Usage: a setting is missing or makes no sense.
pub(crate) fn chunkserver(
    top: &args::TopSettings,
    flags: args::Chunkserver,
) -> Result<(ChunkserverConfig, String)> {
    let file: ChunkserverFile = read_file(flags.config.as_deref().or(top.config.as_deref()))?;
    let data = if flags.data.is_empty() { file.data } else { flags.data };
    if data.is_empty() {
        return Err(usage("--data DIR[,DIR..] is missing"));
    }
    let listen = flags.listen.or(file.listen).ok_or_else(|| usage("--listen HOST:PORT is missing"))?;
    let advertise = flags.advertise.or(file.advertise);
    check_listen(&listen, advertise.as_deref())?;
    let masters = masters_of([&flags.masters, &top.masters, &file.masters])
        .ok_or_else(|| usage("--masters HOST:PORT,.. is missing"))?;
    check_addresses("--masters", &masters)?;
    let mut config = ChunkserverConfig::new(data, masters);
    config.advertise = advertise;
    if let Some(rack) = flags.rack.or(file.rack) {
        config.rack = rack;
    }
    if let Some(bytes) = flags.buffer.or(file.buffer.map(|size| size.0)) {
        if bytes < PAYLOAD_BYTES_MAX.into() {
            return Err(usage(format!(
                "--buffer {bytes} is too small: the largest write at a time, {PAYLOAD_BYTES_MAX} bytes, has to fit \
                 (write --buffer 128MiB for mebibytes)"
            )));
        }
        config.buffer_bytes = bytes;
    }
    config.check()?;
    Ok((config, listen))
}

fn read_file<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T> {
    let Some(path) = path else {
        return Ok(T::default());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {}", path.display()))?;
    toml::from_str(&text).map_err(|error| usage(format!("--config {}: {error}", path.display())))
}

/// A file read as each of those that there are: for fuzzing.
#[cfg(test)]
pub(crate) fn parse_any(text: &str) -> [bool; 3] {
    [
        toml::from_str::<ClientFile>(text).is_ok(),
        toml::from_str::<MasterFile>(text).is_ok(),
        toml::from_str::<ChunkserverFile>(text).is_ok(),
    ]
}

/// `host:port`, for each.
pub(crate) fn check_addresses(flag: &str, addresses: &[String]) -> Result<()> {
    for address in addresses {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.and_then(|port| port.parse::<u16>().ok()).is_none() {
            return Err(usage(format!("{flag}: {address:?} is no HOST:PORT")));
        }
    }
    Ok(())
}

/// The others must be able to reach what they are told.
fn check_listen(listen: &str, advertise: Option<&str>) -> Result<()> {
    check_addresses("--listen", &[listen.to_owned()])?;
    let Some(advertise) = advertise else {
        if is_everywhere(listen) {
            return Err(usage(format!(
                "--listen {listen} is every address of this machine: add --advertise HOST:PORT, as the others reach it"
            )));
        }
        return Ok(());
    };
    check_addresses("--advertise", &[advertise.to_owned()])?;
    let no_port = advertise.rsplit_once(':').is_some_and(|(_, port)| port.parse() == Ok(0_u16));
    if is_everywhere(advertise) || no_port {
        return Err(usage(format!(
            "--advertise {advertise} leads nowhere: give the HOST:PORT by which the others reach this server"
        )));
    }
    Ok(())
}

/// Whether an address is all of a machine's: it can be listened on, but not reached.
fn is_everywhere(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use gfs_proto::id::{ClusterId, MasterId};
    use gfs_proto::random::SystemRandom;

    use super::*;

    fn top(masters: &[&str]) -> args::TopSettings {
        args::TopSettings { masters: masters.iter().map(ToString::to_string).collect(), ..Default::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gfs.toml");
        std::fs::write(&path, "masters = ['a:1']\ntimeout = '5s'").unwrap();
        let own = args::ClientSettings { config: Some(path.clone()), ..Default::default() };
        let client = Client::settle(&top(&[]), &own).unwrap();
        assert_eq!((client.masters, client.timeout), (vec!["a:1".to_owned()], Duration::from_secs(5)));
        assert_eq!(Client::settle(&top(&["b:2"]), &own).unwrap().masters, ["b:2"]);
        std::fs::write(&path, "masterz = ['a:1']").unwrap();
        let error = Client::settle(&top(&[]), &own).unwrap_err();
        assert!(error.to_string().contains("masterz"), "{error}");
        assert_eq!(crate::exit::code_of(&error), crate::exit::USAGE);
    }

    #[test]
    fn what_stands_before_a_servers_command_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gfs.toml");
        std::fs::write(&path, "data = ['/d']\nlisten = '127.0.0.1:1'\nmasters = ['a:1']\nrack = 'r9'")
            .unwrap();
        let flags = |masters: &[&str]| args::Chunkserver {
            masters: masters.iter().map(ToString::to_string).collect(),
            ..args::Chunkserver::default()
        };
        let before = |masters| args::TopSettings { config: Some(path.clone()), ..top(masters) };
        for (before, after, masters) in [
            (before(&[]), flags(&[]), "a:1"),
            (before(&["b:2"]), flags(&[]), "b:2"),
            (before(&["b:2"]), flags(&["c:3"]), "c:3"),
        ] {
            let (config, _) = chunkserver(&before, after).unwrap();
            assert_eq!((config.masters, config.rack), (vec![masters.to_owned()], "r9".to_owned()));
        }
    }

    #[test]
    fn missing_or_senseless_settings_name_the_flag() {
        let none = Client::settle(&top(&[]), &args::ClientSettings::default()).unwrap_err();
        assert!(none.to_string().contains("GFS_MASTERS"));
        for (masters, part) in
            [("nonsense", "HOST:PORT"), ("host:99999", "HOST:PORT"), (":7000", "HOST:PORT")]
        {
            let error = Client::settle(&top(&[masters]), &args::ClientSettings::default()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(check_listen("0.0.0.0:7000", None).is_err());
        assert!(check_listen("[::]:7000", None).is_err());
        assert!(check_listen("0.0.0.0:7000", Some("host:7000")).is_ok());
    }

    #[test]
    fn flags_of_a_new_cluster_mean_nothing_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let given = [("--chunk-size", true), ("--replication", false), ("--trash", true)];
        let ignored = |start| ignored(&given, &MasterConfig::new(dir.path(), start));
        assert!(ignored(Start::Bootstrap).is_empty());
        assert_eq!(ignored(Start::Join(vec!["a:1".into()])), ["--chunk-size", "--trash"]);
        let (cluster, id) = (ClusterId::from_bytes([1; 16]), MasterId::from_raw(1));
        let mut home = identity::Home::open(dir.path(), &SystemRandom).unwrap();
        assert!(ignored(Start::Bootstrap).is_empty());
        home.become_member(identity::Membership { cluster, id }).unwrap();
        // They are used when the making of the cluster, which was cut off, goes on.
        assert!(ignored(Start::Bootstrap).is_empty());
        home.mark_started().unwrap();
        assert_eq!(ignored(Start::Bootstrap), ["--chunk-size", "--trash"]);
    }

    #[test]
    fn a_buffer_has_room_for_the_largest_write() {
        let settled = |bytes| {
            let flags = args::Chunkserver {
                data: vec!["/d".into()],
                listen: Some("127.0.0.1:1".into()),
                buffer: Some(bytes),
                ..args::Chunkserver::default()
            };
            chunkserver(&top(&["a:1"]), flags)
        };
        let least = u64::from(PAYLOAD_BYTES_MAX);
        assert_eq!(settled(least).unwrap().0.buffer_bytes, least);
        // Mebibytes were meant.
        for bytes in [128, least - 1] {
            let error = settled(bytes).unwrap_err();
            assert!(error.to_string().contains("--buffer"), "{error}");
            assert_eq!(crate::exit::code_of(&error), crate::exit::USAGE);
        }
    }

    #[test]
    fn the_others_are_told_no_address_that_leads_nowhere() {
        for nowhere in ["0.0.0.0:7000", "[::]:7000", "host:0", "10.0.0.1:0", "host", ":7000"] {
            let error = check_listen("10.0.0.1:7000", Some(nowhere)).unwrap_err();
            assert!(error.to_string().contains("--advertise"), "{error}");
            assert_eq!(crate::exit::code_of(&error), crate::exit::USAGE);
        }
        check_listen("0.0.0.0:0", Some("10.0.0.1:7000")).unwrap();
        check_listen("127.0.0.1:0", None).unwrap();
    }
}
