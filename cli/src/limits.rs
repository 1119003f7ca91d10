//! How many files a server may have open: every connection is one, too.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a busy server can use: 4096 connections, as many calls between servers, the files of the store or the databases.
const OPEN_FILES_WANTED: u64 = 10_000;

/// Raises the limit to what this process may have. The usual one is 1024, for programs that wait with `select`.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < OPEN_FILES_WANTED) {
        let wanted = OPEN_FILES_WANTED;
        tracing::warn!(
            limit,
            wanted,
            "few files may be open at a time: raise the hard limit (`ulimit -Hn`, systemd: LimitNOFILE)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_open_as_many_files_as_the_system_lets_it() {
        let before = getrlimit(Resource::Nofile);
        let low = before.maximum.map_or(1024, |maximum| maximum.min(1024));
        setrlimit(Resource::Nofile, Rlimit { current: Some(low), ..before }).unwrap();
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: before.maximum, ..before });
    }
}
