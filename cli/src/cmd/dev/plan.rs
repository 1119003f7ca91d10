//! What a dev cluster consists of: numbers, names, addresses, command lines. Kept in `DIR/dev.json`, so that
//! the same directory comes back as the same cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::args;
use crate::exit::usage;

const PLAN_FILE: &str = "dev.json";
/// Most servers of one kind: a machine has only so much memory.
const SERVERS_MAX: u16 = 64;

/// The shape of a dev cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) masters: u16,
    pub(crate) shadows: u16,
    pub(crate) chunkservers: u16,
    pub(crate) port: u16,
    pub(crate) chunk_bytes: u64,
}

/// What a process of the cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Master,
    Shadow,
    Chunkserver,
}

/// One server to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Server {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) address: String,
    /// Of the `gfs` command.
    pub(crate) arguments: Vec<OsString>,
}

impl Plan {
    /// What the flags ask for, completed by what the directory already is, then by the defaults.
    ///
    /// # Errors
    /// A flag contradicts what the directory was made with, or makes no sense.
    pub(crate) fn settle(flags: &args::Dev, dir: &Path) -> Result<Self> {
        let made = Self::load(dir)?;
        let default = Self { masters: 3, shadows: 1, chunkservers: 4, port: 7000, chunk_bytes: 64 << 20 };
        let base = made.clone().unwrap_or(default);
        let plan = Self {
            masters: flags.masters.unwrap_or(base.masters),
            shadows: flags.shadows.unwrap_or(base.shadows),
            chunkservers: flags.chunkservers.unwrap_or(base.chunkservers),
            port: flags.port.unwrap_or(base.port),
            chunk_bytes: flags.chunk_size.unwrap_or(base.chunk_bytes),
        };
        plan.check()?;
        if let Some(made) = made {
            plan.check_against(&made, dir)?;
        }
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        if ![1, 3, 5].contains(&self.masters) {
            return Err(usage(format!("--masters {}: a group has 1, 3 or 5 masters", self.masters)));
        }
        if self.shadows > SERVERS_MAX || self.chunkservers > SERVERS_MAX {
            return Err(usage(format!("at most {SERVERS_MAX} servers of a kind")));
        }
        if self.port == 0 || self.port.checked_add(self.servers_count()).is_none() {
            return Err(usage(format!("--port {}: no room for {} ports", self.port, self.servers_count())));
        }
        gfs_proto::size::ChunkBytes::parse(self.chunk_bytes).map_err(usage)?;
        Ok(())
    }

    /// Masters know each other by address, chunkservers may come and go, chunks keep their size.
    fn check_against(&self, made: &Self, dir: &Path) -> Result<()> {
        for (flag, wanted, stands) in [
            ("--masters", u64::from(self.masters), u64::from(made.masters)),
            ("--shadows", u64::from(self.shadows), u64::from(made.shadows)),
            ("--port", u64::from(self.port), u64::from(made.port)),
            ("--chunk-size", self.chunk_bytes, made.chunk_bytes),
        ] {
            if wanted != stands {
                return Err(usage(format!(
                    "{} was made with {flag} {stands}, it can't change to {wanted}; leave the flag out, or use another --dir",
                    dir.display()
                )));
            }
        }
        Ok(())
    }

    fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(PLAN_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} can't be read", path.display()))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Remembers the plan in its directory.
    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        write_atomically(&dir.join(PLAN_FILE), &serde_json::to_vec_pretty(self)?)
    }

    fn servers_count(&self) -> u16 {
        self.masters + self.shadows + self.chunkservers
    }

    fn address(&self, index: u16) -> String {
        format!("127.0.0.1:{}", self.port.saturating_add(index))
    }

    /// Addresses of the masters, without the shadows.
    pub(crate) fn master_addresses(&self) -> Vec<String> {
        (0..self.masters).map(|index| self.address(index)).collect()
    }

    /// Every server, in the order of their ports.
    pub(crate) fn servers(&self, dir: &Path) -> Vec<Server> {
        let roles = [
            (Role::Master, "master", self.masters),
            (Role::Shadow, "shadow", self.shadows),
            (Role::Chunkserver, "chunkserver", self.chunkservers),
        ];
        let named = roles.into_iter().flat_map(|(role, kind, count)| {
            (1..=count).map(move |number| (role, format!("{kind}-{number}")))
        });
        (0..).zip(named).map(|(index, (role, name))| self.server(dir, index, role, name)).collect()
    }

    fn server(&self, dir: &Path, index: u16, role: Role, name: String) -> Server {
        let address = self.address(index);
        let command = if role == Role::Chunkserver { "chunkserver" } else { "master" };
        let data: PathBuf = dir.join(&name);
        let has_started = gfs_master::identity::has_started(&data);
        let mut arguments: Vec<OsString> =
            vec![command.into(), "--data".into(), data.into(), "--listen".into(), address.clone().into()];
        let mut add = |text: &str| arguments.push(text.into());
        match role {
            Role::Chunkserver => {
                add("--masters");
                add(&self.master_addresses().join(","));
            }
            Role::Master if index == 0 => {
                add("--bootstrap");
                // Said once: a cluster that is there has its size.
                if !has_started {
                    add("--chunk-size");
                    add(&self.chunk_bytes.to_string());
                }
            }
            Role::Master | Role::Shadow => {
                add("--join");
                add(&self.master_addresses().join(","));
                if role == Role::Shadow {
                    add("--shadow");
                }
            }
        }
        Server { role, name, address, arguments }
    }
}

/// Writes a file so that a reader sees all of it or what was there before.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("tmp");
    std::fs::write(&aside, bytes)
        .and_then(|()| std::fs::rename(&aside, path))
        .with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(dir: &Path) -> args::Dev {
        args::Dev {
            dir: dir.to_owned(),
            masters: None,
            shadows: None,
            chunkservers: None,
            port: None,
            chunk_size: None,
            restart: false,
            json: false,
        }
    }

    #[test]
    fn a_directory_comes_back_with_the_shape_it_was_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let made =
            Plan::settle(&args::Dev { masters: Some(1), port: Some(9000), ..flags(dir.path()) }, dir.path());
        let made = made.unwrap();
        made.save(dir.path()).unwrap();
        assert_eq!(Plan::settle(&flags(dir.path()), dir.path()).unwrap(), made);
        let moved = args::Dev { port: Some(9100), ..flags(dir.path()) };
        assert!(Plan::settle(&moved, dir.path()).unwrap_err().to_string().contains("--port"));
        let grown = args::Dev { chunkservers: Some(6), ..flags(dir.path()) };
        assert_eq!(Plan::settle(&grown, dir.path()).unwrap().chunkservers, 6);
    }

    #[test]
    fn numbers_that_make_no_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            args::Dev { masters: Some(2), ..flags(dir.path()) },
            args::Dev { port: Some(65_535), ..flags(dir.path()) },
            args::Dev { chunk_size: Some(1000), ..flags(dir.path()) },
            args::Dev { chunkservers: Some(1000), ..flags(dir.path()) },
        ] {
            assert!(Plan::settle(&bad, dir.path()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_first_master_bootstraps_and_the_others_join() {
        let plan = Plan { masters: 3, shadows: 1, chunkservers: 1, port: 7000, chunk_bytes: 1 << 26 };
        let lines: Vec<String> = plan
            .servers(Path::new("d"))
            .into_iter()
            .map(|server| server.arguments.join(std::ffi::OsStr::new(" ")).into_string().unwrap())
            .collect();
        let all = "127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002";
        assert_eq!(
            lines,
            [
                "master --data d/master-1 --listen 127.0.0.1:7000 --bootstrap --chunk-size 67108864"
                    .to_owned(),
                format!("master --data d/master-2 --listen 127.0.0.1:7001 --join {all}"),
                format!("master --data d/master-3 --listen 127.0.0.1:7002 --join {all}"),
                format!("master --data d/shadow-1 --listen 127.0.0.1:7003 --join {all} --shadow"),
                format!("chunkserver --data d/chunkserver-1 --listen 127.0.0.1:7004 --masters {all}"),
            ]
        );
    }
}
