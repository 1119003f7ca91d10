//! What processes have left behind that were killed: named after them, it can be told from what is in use.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// The beginning of the name of what this process makes and removes at its end.
pub fn name_of_this_process(prefix: &str) -> String {
    // Of the same length for every process.
    format!("{prefix}{:07}-", std::process::id())
}

/// Removes directories with such names whose process is gone.
///
/// # Errors
/// The directory can't be read.
pub fn remove_leftovers(directory: &Path, prefix: &str) -> Result<()> {
    for path in leftovers(directory, prefix)? {
        // Another process may be at it too.
        fs::remove_dir_all(path).ok();
    }
    Ok(())
}

fn leftovers(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| owner(name, prefix)).is_some_and(is_gone) && path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// The process that a name speaks of.
fn owner(name: &OsStr, prefix: &str) -> Option<u32> {
    let (number, _) = name.to_str()?.strip_prefix(prefix)?.split_once('-')?;
    number.parse().ok()
}

/// Whether there is no such process any more.
pub(crate) fn is_gone(process: u32) -> bool {
    !Path::new("/proc").join(process.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_dead_have_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.join("below")).unwrap();
            path
        };
        let gone = make(&format!("gfs-x-{dead:07}-abc"));
        let stays = [
            make(&format!("{}abc", name_of_this_process("gfs-x-"))),
            make(&format!("gfs-y-{dead:07}-abc")),
            make("gfs-x-abc"),
        ];
        remove_leftovers(directory.path(), "gfs-x-").unwrap();
        assert!(!gone.exists() && stays.iter().all(|path| path.exists()));
    }
}
