//! What runs on the simulated hosts, and what outlives a crash of theirs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use gfs_chunkserver::ChunkserverConfig;
use gfs_chunkserver::store::files::{Files, memory::MemoryFiles};
use gfs_chunkserver::store::{Options, Store};
use gfs_master::raft::{BootstrapConfig, Node, NodeConfig, Origin, Timers};
use gfs_proto::random::SeededRandom;
use gfs_proto::size::{CHUNK_BYTES_MAX, ChunkBytes};
use gfs_proto::{Environment, Error};
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::doors::{self, Knobs};
use crate::plan::Plan;
use crate::points;

const MASTER_PORT: u16 = 7000;
const CHUNKSERVER_PORT: u16 = 7100;
/// Room on the disks of a chunkserver.
pub(crate) const DISK_BYTES: u64 = 1 << 30;
/// Of that, what chunks may not take.
const HEADROOM_BYTES: u64 = 16 << 20;
/// Copies of a chunk.
pub(crate) const REPLICATION: u32 = 3;

/// What a host is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Role {
    Master,
    Shadow,
    Chunkserver,
}

/// A server: what stays when its host crashes, and handles into what runs.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) knobs: Arc<Knobs>,
    /// A chunkserver's disks.
    pub(crate) files: MemoryFiles,
    /// A master's directories: each life has one of its own, so that a crash can leave what was written at that moment.
    directory: PathBuf,
    life: Cell<u64>,
    pub(crate) number: u64,
    /// The running node or store, for looking at only.
    pub(crate) node: RefCell<Option<Node>>,
    pub(crate) store: RefCell<Option<Store>>,
    /// Why it ended by itself.
    pub(crate) ended: RefCell<Option<Result<(), Error>>>,
    /// The fail point at which it died: nothing that it still does has an effect.
    pub(crate) died: RefCell<Option<Result<&'static str>>>,
}

/// All servers of a run.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) plan: Rc<Plan>,
    pub(crate) all: Rc<BTreeMap<String, Rc<Server>>>,
}

impl Servers {
    pub(crate) fn new(plan: &Rc<Plan>, directory: &Path) -> Self {
        let mut all = BTreeMap::new();
        let counts = [
            (Role::Master, "master", plan.masters),
            (Role::Shadow, "shadow", plan.shadows),
            (Role::Chunkserver, "chunkserver", plan.chunkservers),
        ];
        for (role, prefix, count) in counts {
            for index in 1..=count {
                let name = format!("{prefix}-{index}");
                let server = Server {
                    name: name.clone(),
                    role,
                    knobs: Arc::default(),
                    files: MemoryFiles::new(DISK_BYTES),
                    directory: directory.join(&name),
                    life: Cell::new(0),
                    number: all.len() as u64 + 1,
                    node: RefCell::default(),
                    store: RefCell::default(),
                    ended: RefCell::default(),
                    died: RefCell::default(),
                };
                all.insert(name, Rc::new(server));
            }
        }
        Self { plan: plan.clone(), all: Rc::new(all) }
    }

    pub(crate) fn of(&self, role: Role) -> impl Iterator<Item = &Rc<Server>> {
        self.all.values().filter(move |server| server.role == role)
    }

    /// The first server of which this is true.
    pub(crate) fn find(&self, is: impl Fn(&Server) -> bool) -> Option<Rc<Server>> {
        self.all.values().find(|server| is(server)).cloned()
    }

    /// Addresses of the masters, shadows last.
    pub(crate) fn masters(&self) -> Vec<String> {
        let names = self.of(Role::Master).chain(self.of(Role::Shadow));
        names.map(|server| format!("{}:{MASTER_PORT}", server.name)).collect()
    }

    /// The name of the master that leads, if there is one that says so.
    pub(crate) fn leader(&self) -> Option<String> {
        let leads = |server: &&Rc<Server>| {
            server.node.borrow().as_ref().is_some_and(|node| node.leadership().borrow().leading)
        };
        self.of(Role::Master).find(leads).map(|server| server.name.clone())
    }
}

impl Server {
    /// Runs until it ends by itself or its host crashes.
    pub(crate) async fn run(self: Rc<Self>, servers: Servers) {
        points::begin(self.number, Some(self.clone()));
        let ended = match self.role {
            Role::Master | Role::Shadow => self.run_master(&servers).await,
            Role::Chunkserver => self.run_chunkserver(&servers).await,
        };
        tracing::warn!(?ended, "a server ended");
        *self.ended.borrow_mut() = Some(ended);
    }

    fn environment(&self, plan: &Plan) -> Environment {
        let seed = plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (self.number << 32) ^ self.life.get();
        doors::environment(seed, plan.rate_ppm(self.number), plan.disk, &self.knobs)
    }

    fn life_directory(&self) -> PathBuf {
        self.directory.join(self.life.get().to_string())
    }

    async fn run_master(&self, servers: &Servers) -> Result<(), Error> {
        let plan = &servers.plan;
        let environment = self.environment(plan);
        let listener =
            environment.net.listen(&format!("0.0.0.0:{MASTER_PORT}")).await.map_err(Error::unavailable)?;
        let config = NodeConfig {
            timers: Timers {
                heartbeat: plan.heartbeat,
                election_min: plan.election.0,
                election_max: plan.election.1,
            },
            block_cache_bytes: 1 << 20,
            checkpoint_every: plan.checkpoint_every,
            log_keep: plan.log_keep,
            // What the machine has is no part of a seed; fail points say that it is full.
            headroom_bytes: None,
            ..NodeConfig::new(self.life_directory(), format!("{}:{MASTER_PORT}", self.name))
        };
        let origin = if self.name == "master-1" {
            Origin::Bootstrap(BootstrapConfig {
                chunk_bytes: ChunkBytes::parse(plan.chunk_bytes).map_err(Error::internal)?,
                replication: REPLICATION,
                trash: plan.trash,
                session: plan.session,
            })
        } else {
            Origin::Join { masters: servers.masters(), shadow: self.role == Role::Shadow }
        };
        let look = |node: &Node| *self.node.borrow_mut() = Some(node.clone());
        gfs_master::run_node((config, &origin), environment, listener, CancellationToken::new(), look).await
    }

    async fn run_chunkserver(&self, servers: &Servers) -> Result<(), Error> {
        let plan = &servers.plan;
        let environment = self.environment(plan);
        let address = format!("0.0.0.0:{CHUNKSERVER_PORT}");
        let listener = environment.net.listen(&address).await.map_err(Error::unavailable)?;
        let directories: Vec<PathBuf> =
            (1..=plan.disks).map(|disk| PathBuf::from(format!("/disk-{disk}"))).collect();
        let options = Options {
            chunk_bytes_max: ChunkBytes::parse(CHUNK_BYTES_MAX.into()).map_err(Error::internal)?,
            segment_bytes: plan.segment_bytes,
            segments: plan.segments,
            headroom_bytes: HEADROOM_BYTES,
            open_files: 64,
            add_directories: false,
            workers: environment.workers.clone(),
        };
        let files: Arc<dyn Files> = Arc::new(self.files.clone());
        let store = Store::open(&directories, options, files, &*environment.random)
            .map_err(|error| Error::unavailable(format!("store: {error}")))?;
        *self.store.borrow_mut() = Some(store.clone());
        let config = ChunkserverConfig {
            advertise: Some(format!("{}:{CHUNKSERVER_PORT}", self.name)),
            rack: format!("rack-{}", self.number % 3),
            buffer_bytes: plan.buffer_bytes,
            ..ChunkserverConfig::new(directories, servers.masters())
        };
        gfs_chunkserver::run_on(store, config, environment, listener, CancellationToken::new()).await
    }

    /// Dies here, in the middle of what it does: its disks stay as they are, and nobody hears from it any more.
    pub(crate) fn die(&self, point: &'static str) {
        if self.knobs.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let left = match self.role {
            Role::Chunkserver => {
                self.files.die_after(0);
                Ok(())
            }
            Role::Master | Role::Shadow => self.keep_directory(),
        };
        *self.died.borrow_mut() = Some(left.map(|()| point));
    }

    /// The next life of a master gets its directory as it is at this moment.
    fn keep_directory(&self) -> Result<()> {
        let before = self.life_directory();
        self.life.set(self.life.get() + 1);
        copy_as_it_is(&before, &self.life_directory()).context("a master's directory can't be copied")
    }

    /// Crashes its host: nothing runs there any more, and of its disks there is what that leaves.
    ///
    /// # Errors
    /// A master's directory can't be copied.
    pub(crate) fn crash(&self, sim: &mut Sim<'_>, power_cut: bool, random: &SeededRandom) -> Result<()> {
        self.before_crash(power_cut, random)?;
        let name = self.name.as_str();
        if !sim.is_host_running(name) {
            // Who ended by itself would keep its tasks, and its databases open, until it is started again.
            sim.bounce(name);
        }
        sim.crash(name);
        self.after_crash();
        Ok(())
    }

    /// Lets go of what runs there, and keeps of its disks what the crash leaves.
    fn before_crash(&self, power_cut: bool, random: &SeededRandom) -> Result<()> {
        *self.node.borrow_mut() = None;
        *self.store.borrow_mut() = None;
        *self.ended.borrow_mut() = None;
        // From here on nobody dies at a fail point: what its tasks drop may pass some.
        let died = self.knobs.dead.swap(true, Ordering::Relaxed);
        if self.role != Role::Chunkserver {
            // Who died at one has kept its directory there.
            return if died { Ok(()) } else { self.keep_directory() };
        }
        if power_cut {
            self.files.cut_power(random);
        } else {
            self.files.kill();
        }
        self.life.set(self.life.get() + 1);
        Ok(())
    }

    fn after_crash(&self) {
        self.knobs.dead.store(false, Ordering::Relaxed);
        self.knobs.stall_us.store(0, Ordering::Relaxed);
        *self.died.borrow_mut() = None;
        if self.role != Role::Chunkserver {
            let dead = self.directory.join((self.life.get() - 1).to_string());
            if let Err(error) = std::fs::remove_dir_all(&dead) {
                tracing::trace!(%error, "nothing to remove");
            }
        }
    }
}

/// Copies a directory of databases at a moment at which no file comes or goes.
fn copy_as_it_is(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..100 {
        if !from.exists() {
            return Ok(());
        }
        let before = sizes(from);
        let copied = copy_tree(from, to);
        if copied.is_ok() && before.is_ok() && sizes(from).ok() == before.ok() {
            return Ok(());
        }
        std::fs::remove_dir_all(to)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("{} never stands still", from.display())
}

fn sizes(directory: &Path) -> std::io::Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(sizes(&entry.path())?);
        } else {
            found.insert(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(found)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
