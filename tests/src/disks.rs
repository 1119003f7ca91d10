//! Disks that can lose power, fill up and die: a file system in a file for each server, mounted over a loop device.
//!
//! A power cut is the file system's own shutdown (`xfs_io -x -c shutdown`): from then on nothing reaches the disk, also
//! not what the page cache and the journal hold. Then the processes are killed, and mounting it again replays the
//! journal. What a program had not synced is gone, which kill -9 never shows. Programs that ask the operating system
//! whether the page cache has survived (its boot id) are told of another boot: the servers run in a mount namespace of
//! their own, in which that file of `/proc` is another one.
//!
//! Not shown: a disk that forgets what it was told to flush. The loop device writes to a file of this machine, which
//! stays up.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::leftovers::is_gone;

/// Names of the directories under which disks are mounted: this, and the id of the process that made them.
const PREFIX: &str = "gfs-disks-";
/// How the names of the files end that are disks.
const IMAGE: &str = "image";
/// Where the operating system says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What must be installed.
const TOOLS: [&str; 6] = ["mkfs.ext4", "mount", "umount", "unshare", "xfs_io", "sh"];

/// The disks of one cluster. Dropping it unmounts all of them.
#[derive(Debug)]
pub struct Disks {
    home: PathBuf,
    images: BTreeMap<String, PathBuf>,
    /// How often the machines were started, all of them: no two starts have the same id, though disks may be exchanged.
    boots: u64,
    /// Shut down, and not mounted again.
    dead: BTreeSet<String>,
}

impl Disks {
    /// What stands in the way of disks on this machine, if anything does.
    pub fn obstacle() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("disks of their own need root".into());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = TOOLS
            .into_iter()
            .find(|tool| !std::env::split_paths(&path).any(|directory| directory.join(tool).exists()));
        if let Some(tool) = missing {
            return Some(format!(
                "disks of their own need {tool} (apt-get install e2fsprogs xfsprogs util-linux)"
            ));
        }
        (!Path::new("/dev/loop-control").exists()).then(|| "there are no loop devices".into())
    }

    /// Makes a place for disks in a directory.
    ///
    /// # Errors
    /// This machine has none ([`Disks::obstacle`]), or says no.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        if let Some(obstacle) = Self::obstacle() {
            bail!(obstacle);
        }
        sweep()?;
        let home = directory.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&home)?;
        let disks = Self { home, images: BTreeMap::new(), boots: 0, dead: BTreeSet::new() };
        // Shared, so that the servers' namespaces see what is mounted and unmounted here.
        run("mount", ["--bind".as_ref(), disks.home.as_os_str(), disks.home.as_os_str()])?;
        run("mount", ["--make-shared".as_ref(), disks.home.as_os_str()])?;
        Ok(disks)
    }

    /// Makes and mounts a disk.
    ///
    /// # Errors
    /// The machine says no.
    pub(crate) fn add(&mut self, name: &str, bytes: u64) -> Result<()> {
        let image = self.home.with_file_name(format!("{name}.{IMAGE}"));
        fs::File::create_new(&image)?.set_len(bytes)?;
        run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), "-m0".as_ref(), image.as_os_str()])?;
        fs::create_dir(self.home.join(name))?;
        self.images.insert(name.to_owned(), image);
        self.boot(name)?;
        self.mount(name)
    }

    /// The directory of a disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Whether there is such a disk.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.images.contains_key(name)
    }

    fn mount(&self, name: &str) -> Result<()> {
        let image = self.images.get(name).with_context(|| format!("no disk {name}"))?;
        let options = ["-o".as_ref(), "loop,errors=continue".as_ref()];
        let (image, path) = (image.as_os_str(), self.path(name));
        run("mount", options.into_iter().chain([image, path.as_os_str()]))
    }

    /// From now on nothing reaches the disk, and every access fails.
    ///
    /// # Errors
    /// The machine says no.
    pub(crate) fn shut_down(&mut self, name: &str) -> Result<()> {
        self.dead.insert(name.to_owned());
        run("xfs_io", ["-x".as_ref(), "-c".as_ref(), "shutdown".as_ref(), self.path(name).as_os_str()])
    }

    /// Mounts a disk again, with what it has; nobody may be using it.
    ///
    /// # Errors
    /// The machine says no.
    pub(crate) fn remount(&mut self, name: &str) -> Result<()> {
        run("umount", [self.path(name).as_os_str()])?;
        self.mount(name)?;
        self.dead.remove(name);
        Ok(())
    }

    /// Puts each of two disks into the other's machine; nobody may be using them.
    ///
    /// # Errors
    /// The machine says no.
    pub(crate) fn swap(&mut self, one: &str, other: &str) -> Result<()> {
        let image = |name: &str| self.images.get(name).cloned().with_context(|| format!("no disk {name}"));
        let (first, second) = (image(one)?, image(other)?);
        run("umount", [self.path(one).as_os_str()])?;
        run("umount", [self.path(other).as_os_str()])?;
        self.images.extend([(one.to_owned(), second), (other.to_owned(), first)]);
        for name in [one, other] {
            self.boot(name)?;
            self.mount(name)?;
        }
        Ok(())
    }

    /// Disks that are shut down.
    pub(crate) fn dead(&self) -> Vec<String> {
        self.dead.iter().cloned().collect()
    }

    /// The next process on this disk is told that its machine was started anew.
    ///
    /// # Errors
    /// The machine says no.
    pub(crate) fn boot(&mut self, name: &str) -> Result<()> {
        self.boots += 1;
        let id = format!("00000000-0000-4000-8000-{:012x}\n", self.boots);
        Ok(fs::write(self.boot_id(name), id)?)
    }

    fn boot_id(&self, name: &str) -> PathBuf {
        self.home.with_file_name(format!("{name}.boot-id"))
    }

    /// What stands before a server's command line: it is told its own boot id, and sees disks come and go.
    pub(crate) fn wrapper(&self, name: &str) -> Vec<OsString> {
        let script = format!("mount --bind \"$0\" {BOOT_ID} && exec \"$@\"");
        let words = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", &script];
        words.into_iter().map(OsString::from).chain([self.boot_id(name).into()]).collect()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        if let Err(error) = unmount_below(&self.home) {
            eprintln!("disks stay mounted under {}: {error:#}", self.home.display());
        }
    }
}

/// Unmounts what runs have left whose process is gone, and removes their disks, which are large.
fn sweep() -> Result<()> {
    let mut homes = BTreeSet::new();
    for path in mounts()? {
        if let Some(home) = path.ancestors().find(|home| owner(home).is_some_and(is_gone)) {
            unmount(&path)?;
            homes.insert(home.to_owned());
        }
    }
    homes.iter().try_for_each(|home| remove_images(home))
}

/// Whose disks are mounted under this directory.
fn owner(home: &Path) -> Option<u32> {
    home.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Removes the files that the disks under a directory were: they lie beside it.
fn remove_images(home: &Path) -> Result<()> {
    let Some(beside) = home.parent() else { return Ok(()) };
    for entry in fs::read_dir(beside)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == IMAGE) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Unmounts everything in a directory and the directory itself.
fn unmount_below(home: &Path) -> Result<()> {
    mounts()?.iter().filter(|path| path.starts_with(home)).try_for_each(|path| unmount(path))
}

/// Also if somebody still stands in it: then it goes when they do.
fn unmount(path: &Path) -> Result<()> {
    run("umount", [path.as_os_str()]).or_else(|_| run("umount", ["-l".as_ref(), path.as_os_str()]))
}

/// Where something is mounted, the newest first.
fn mounts() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().with_context(|| format!("{program} can't be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_the_dead_are_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join(format!("{PREFIX}1"));
        fs::create_dir(&home).unwrap();
        for name in ["master-1.image", "history.jsonl"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!((owner(&home), owner(directory.path())), (Some(1), None));
        remove_images(&home).unwrap();
        assert!(!directory.path().join("master-1.image").exists());
        assert!(directory.path().join("history.jsonl").exists() && home.exists());
    }

    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
        if let Some(obstacle) = Disks::obstacle() {
            eprintln!("skipped: {obstacle}");
            return;
        }
        let directory = tempfile::Builder::new().prefix("gfs-test-").tempdir().unwrap();
        let mut disks = Disks::new(directory.path()).unwrap();
        disks.add("one", 16 << 20).unwrap();
        let directory = disks.path("one");
        let file = |name: &str| directory.join(name);
        for name in ["synced", "not"] {
            fs::write(file(name), name).unwrap();
        }
        fs::File::open(file("synced")).unwrap().sync_all().unwrap();
        fs::File::open(disks.path("one")).unwrap().sync_all().unwrap();
        fs::write(file("late"), "late").unwrap();
        disks.shut_down("one").unwrap();
        assert!(fs::write(file("dead"), "x").is_err());
        disks.remount("one").unwrap();
        assert_eq!(fs::read_to_string(file("synced")).unwrap(), "synced");
        assert!(!file("late").exists());
        let before = fs::read_to_string(disks.boot_id("one")).unwrap();
        disks.add("other", 16 << 20).unwrap();
        disks.swap("one", "other").unwrap();
        assert!(!file("synced").exists() && disks.path("other").join("synced").exists());
        let boot_ids =
            BTreeSet::from(["one", "other"].map(|name| fs::read_to_string(disks.boot_id(name)).unwrap()));
        assert!(
            boot_ids.len() == 2 && !boot_ids.contains(&before),
            "nobody is to take another machine's boot for its own"
        );
        let home = disks.home.clone();
        drop(disks);
        assert!(!mounts().unwrap().iter().any(|path| path.starts_with(&home)));
    }
}
