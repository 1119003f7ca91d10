//! The entry of a fuzz target under libFuzzer: `fuzz_targets/` has one line for each.

pub use libfuzzer_sys;

/// Makes the target of this name of a crate the one of this program.
#[macro_export]
macro_rules! target {
    ($targets:path, $name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::find(&$targets, $name).warm_up(),
            |data: &[u8]| $crate::find(&$targets, $name).try_one(data)
        );
    };
}

/// The target of this name.
///
/// # Panics
/// If there is none.
pub fn find(targets: &'static [gfs_fuzz::Target], name: &str) -> &'static gfs_fuzz::Target {
    let target = targets.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("no target {name}"))
}
