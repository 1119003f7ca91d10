//! How a node comes to life: identity, stores, the check between them, openraft, bootstrap or join.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use gfs_proto::id::{ClusterId, MasterId};
use gfs_proto::retry::Backoff;
use gfs_proto::work::Workers;
use gfs_proto::{Environment, Error, Result, Retry};
use openraft::errors::{InitializeError, RaftError};
use openraft::storage::RaftLogStorage;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::clock::{GroupClock, voters_of};
use super::gate::Gate;
use super::log::LogStore;
use super::machine::{Feeds, Machine};
use super::members::Members;
use super::network::{Factory, Network};
use super::node::{self, Inner, propose};
use super::room::{OwnDisk, Room};
use super::store::{self, StateStore};
use super::types::{LogId, MasterNode, Raft};
use super::{BootstrapConfig, Leadership, NodeConfig, Origin, room, tasks};
use crate::identity::{Home, Membership};
use crate::state::{Command, Proposal, Rejected};

/// Id of the first master of a cluster; the others get the index of the entry that registers them.
const FIRST: MasterId = MasterId::from_raw(1);
/// How long a new cluster may take to decide its first command.
const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(30);
/// How long a new member asks to be taken in before it gives up.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);
/// After this long without a quorum's answers a leader asks less often, so that others can be elected
/// (a partial partition of five voters).
const QUORUM_LOSS_PROBE: Duration = Duration::from_millis(2400);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// openraft's settings; each differs from its default for a reason.
fn raft_config(config: &NodeConfig, cluster: ClusterId) -> Result<Config> {
    let timers = config.timers;
    let settings = Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: millis(timers.heartbeat),
        election_timeout_min: millis(timers.election_min),
        election_timeout_max: millis(timers.election_max),
        quorum_loss_probe_interval: Some(millis(QUORUM_LOSS_PROBE.max(2 * timers.election_max))),
        // A node that was cut off does not depose the leader when it comes back.
        enable_pre_vote: Some(true),
        // A restarted leader asks for votes like everybody else.
        enable_leader_restore: Some(false),
        // A wiped member must not be taken back as if nothing had happened.
        allow_log_reversion: None,
        // A ceiling only: the transfer watches its own progress.
        install_snapshot_timeout: 600_000,
        max_payload_entries: 2048,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.checkpoint_every),
        max_in_snapshot_log_to_keep: config.log_keep,
        // Each purge leaves a tombstone in the log's database: few large ones.
        purge_batch_size: (config.log_keep / 40).clamp(1, 50_000),
        backoff: "100ms 200ms 400ms ...1s".into(),
        ..Config::default()
    };
    settings.validate().map_err(Error::bad_argument)
}

/// The stores of one node.
struct Stores {
    home: Home,
    member: Membership,
    log: LogStore,
    state: Arc<StateStore>,
}

/// Whose log it is.
pub(super) fn owner_of(home: &Home, member: Membership) -> String {
    format!("{} {} {}", member.cluster, member.id, home.uuid())
}

fn open(mut home: Home, member: Membership, cache_bytes: usize, workers: &Workers) -> Result<Stores> {
    // They may hold the last room, without which RocksDB opens nothing.
    store::drop_unfinished(&home.state_dir()).map_err(Error::unavailable)?;
    let owner = owner_of(&home, member);
    // Guard emptied_log: without its log a member has forgotten its votes and what it acknowledged.
    let log = if home.has_started() {
        LogStore::reopen(&home.log_dir(), &owner, workers)
    } else {
        LogStore::open(&home.log_dir(), &owner, workers)
    };
    let log = log.map_err(|error| {
        let lost = error.kind() == io::ErrorKind::NotFound;
        if lost { home.log_is_lost() } else { Error::unavailable(error) }
    })?;
    let state = StateStore::open(&home.state_dir(), cache_bytes, workers).map_err(Error::unavailable)?;
    let (applied, _) = state.applied();
    // The quorum had entries whose sync here never finished, and the state was flushed with them. openraft
    // drops the log up to there, so a checkpoint must reach that far too.
    let covered = state.checkpoint().and_then(|checkpoint| checkpoint.meta().last_log_id);
    if applied > log.shared().last() && covered < applied {
        tracing::warn!(?applied, "the state is ahead of the log: taking a checkpoint first");
        state.build_checkpoint().map_err(Error::unavailable)?;
    }
    if member.id != FIRST {
        home.mark_started()?;
    }
    Ok(Stores { home, member, log, state: Arc::new(state) })
}

/// Starts a node; [`super::Node::start`] has the words.
pub(super) async fn start(config: NodeConfig, origin: &Origin, environment: &Environment) -> Result<Inner> {
    let (dir, random) = (config.dir.clone(), environment.random.clone());
    let mut home = environment.workers.run(move || Home::open(&dir, &*random)).await??;
    let member = match home.member() {
        Some(member) => member,
        None => {
            let member = match origin {
                Origin::Bootstrap(_) => {
                    Membership { cluster: ClusterId::from_bytes(environment.random.bits128()), id: FIRST }
                }
                Origin::Join { masters, shadow } => {
                    ask_to_join(&home, masters, &config.address, *shadow, environment).await?
                }
            };
            home.become_member(member)?;
            member
        }
    };
    let cache_bytes = config.block_cache_bytes;
    let workers = environment.workers.clone();
    let stores = environment.workers.run(move || open(home, member, cache_bytes, &workers)).await??;
    let mut inner = run(&config, stores, environment).await?;
    if member.id == FIRST && !inner._home.has_started() {
        let Origin::Bootstrap(bootstrap) = origin else {
            return Err(Error::bad_argument("the making of this cluster was interrupted: bootstrap again"));
        };
        tokio::select! {
            made = make_cluster(&inner, &config, bootstrap, environment) => made?,
            // Its disk, say: to try again here would be in vain.
            error = inner.failed() => return Err(error),
        }
        inner._home.mark_started()?;
    }
    Ok(inner)
}

/// Drops the end of a log that the leader of a later term has replaced, if the state has what took its place already: the
/// removal is not synced by itself, so a power cut may have taken it back.
///
/// What was applied is committed. An entry of an older term in its place is not, and nothing after it; what is before it the
/// state has, and a checkpoint covers it (`open`). What was acknowledged of the later term was synced after the removal.
async fn drop_replaced_end(log: &mut LogStore, applied: Option<LogId>) -> io::Result<()> {
    let found = log.get_log_state().await?;
    let (Some(applied), Some(last)) = (applied, found.last_log_id) else { return Ok(()) };
    if last < applied && last.index >= applied.index {
        tracing::warn!(%applied, %last, "the end of the log was replaced when it was lost: it goes");
        log.truncate_after(found.last_purged_log_id).await?;
    }
    Ok(())
}

/// Starts openraft on the stores.
async fn run(config: &NodeConfig, stores: Stores, environment: &Environment) -> Result<Inner> {
    let Stores { home, member, mut log, state } = stores;
    let Membership { cluster, id } = member;
    drop_replaced_end(&mut log, state.applied().0).await.map_err(Error::unavailable)?;
    let feeds = Feeds::new(state.applied().0);
    let network = Arc::new(Network::new(environment.clone(), cluster, id.raw()));
    let log_shared = Arc::downgrade(log.shared());
    let log_poison = log.shared().poison.clone();
    let settings = Arc::new(raft_config(config, cluster)?);
    let machine = Machine::new(state.clone(), feeds.clone(), environment.workers.clone());
    let raft: Raft = openraft::Raft::new(id.raw(), settings, Factory(network.clone()), log, machine)
        .await
        .map_err(Error::unavailable)?;
    let stop = CancellationToken::new();
    let (sender, leadership) = watch::channel(Leadership::default());
    let clock = Arc::new(GroupClock::new(environment.clock.clone(), id, voters_of(raft.clone())));
    let room = Arc::new(Room::new(id, environment.clock.clone(), voters_of(raft.clone())));
    let disk = OwnDisk {
        room: room.clone(),
        directories: vec![config.dir.clone(), home.log_dir(), home.state_dir()],
        headroom_bytes: config.headroom_bytes,
        workers: environment.workers.clone(),
        was_full: AtomicBool::new(false),
    };
    let identity = (home.uuid(), config.address.clone());
    let members = Arc::new(Members::new(raft.clone(), clock.clone(), network.clone(), identity));
    tokio::spawn(tasks::follow(raft.clone(), sender, stop.clone()));
    tokio::spawn(tasks::care(members.clone(), stop.clone()));
    tokio::spawn(room::watch(Arc::new(disk), stop.clone()));
    Ok(Inner {
        raft,
        cluster,
        id,
        store: state,
        log: log_shared,
        log_poison,
        feeds,
        network,
        clock,
        room,
        members,
        leadership,
        stop,
        read_here: Gate::new(),
        read_there: Gate::new(),
        admission: Semaphore::new(node::PROPOSALS_MAX),
        _home: home,
    })
}

/// Makes the cluster, or finishes that after a crash. Once it is made it is never made again.
async fn make_cluster(
    inner: &Inner,
    config: &NodeConfig,
    bootstrap: &BootstrapConfig,
    environment: &Environment,
) -> Result<()> {
    let node = MasterNode { address: config.address.clone(), shadow: false };
    match inner.raft.initialize(BTreeMap::from([(FIRST.raw(), node)])).await {
        // Not allowed: it was done before the crash.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => return Err(Error::internal(error)),
    }
    let command = Command::Bootstrap {
        cluster: inner.cluster,
        chunk_bytes: bootstrap.chunk_bytes,
        replication: bootstrap.replication,
        trash_ms: millis(bootstrap.trash),
        session_ms: millis(bootstrap.session),
        master: FIRST,
        uuid: inner._home.uuid(),
        address: config.address.clone(),
    };
    let mut backoff = Backoff::new(environment, BOOTSTRAP_PATIENCE);
    loop {
        let proposal = Proposal::internal(environment.clock.wall(), command.clone());
        match propose(&inner.raft, &proposal).await {
            Ok((_, Ok(_) | Err(Rejected::AlreadyBootstrapped { .. }))) => return Ok(()),
            Ok((_, Err(rejected))) => return Err(rejected.into()),
            // It has not elected itself yet.
            Err(error) if error.retry() != Retry::Never => backoff.pause(&error).await?,
            Err(error) => return Err(error),
        }
    }
}

/// Asks the masters for an id until the leader gives one; the directory's identity makes repeats harmless.
async fn ask_to_join(
    home: &Home,
    masters: &[String],
    address: &str,
    shadow: bool,
    environment: &Environment,
) -> Result<Membership> {
    let network = Network::new(environment.clone(), ClusterId::from_bytes([0; 16]), 0);
    let mut backoff = Backoff::new(environment, JOIN_PATIENCE);
    let mut hint: Option<String> = None;
    let mut turn = 0;
    loop {
        let Some(master) = hint.take().or_else(|| masters.get(turn % masters.len().max(1)).cloned()) else {
            return Err(Error::bad_argument("no master is given to join"));
        };
        turn += 1;
        let error = match network.join(&master, home.uuid(), address, shadow).await {
            Ok(member) => return Ok(member),
            Err(error) => error,
        };
        tracing::info!(%master, %error, "can't join yet");
        if error.retry() == Retry::Never {
            return Err(error);
        }
        if let Error::NotLeader { leader: Some(leader) } = &error {
            hint = Some(leader.clone());
        }
        backoff.pause(&error).await?;
    }
}
