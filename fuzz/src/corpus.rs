//! The corpora: minimised inputs that reach all code known to be reachable, in `fuzz/corpus/TARGET/`.

use std::path::{Path, PathBuf};

/// Where the corpus of a target is.
pub fn corpus_directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The corpus of a target by file name; nothing if there is none.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(corpus_directory(target)) else { return Vec::new() };
    let mut corpus: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).ok()?))
        })
        .collect();
    corpus.sort();
    corpus
}
