//! Paths, parsed once at the door: a bad path can't exist inside.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Most names in a path.
pub const PATH_DEPTH_MAX: usize = 256;

/// Why a path or name is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum PathError {
    /// The path does not start with `/`.
    #[error("a path starts with '/'")]
    NotAbsolute,
    /// A name is empty, as in `/a//b` or `/a/`.
    #[error("a name is empty")]
    EmptyName,
    /// A name is `.` or `..`.
    #[error("'.' and '..' are no names")]
    Dots,
    /// A name contains `/` or NUL.
    #[error("a name contains '/' or NUL")]
    ForbiddenByte,
    /// A name is longer than [`NAME_BYTES_MAX`].
    #[error("a name is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// The path is longer than [`PATH_BYTES_MAX`].
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    PathTooLong,
    /// The path has more than [`PATH_DEPTH_MAX`] names.
    #[error("the path is deeper than {PATH_DEPTH_MAX} names")]
    TooDeep,
    /// The operation needs a name, and the root has none.
    #[error("the root directory can't be used here")]
    Root,
}

/// One name within a directory: 1 to 255 bytes of UTF-8 without `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_name(text: &str) -> Result<(), PathError> {
    match text {
        "" => Err(PathError::EmptyName),
        "." | ".." => Err(PathError::Dots),
        _ if text.len() > NAME_BYTES_MAX => Err(PathError::NameTooLong),
        _ if text.bytes().any(|byte| byte == b'/' || byte == 0) => Err(PathError::ForbiddenByte),
        _ => Ok(()),
    }
}

/// An absolute path: `/` or `/name/name..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilePath(String);

impl FilePath {
    /// The root directory.
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Checks a path. The only spelling of a path is accepted: no empty names, no trailing slash.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::PathTooLong);
        }
        let rest = text.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        if rest.is_empty() {
            return Ok(Self::root());
        }
        for (depth, name) in rest.split('/').enumerate() {
            if depth >= PATH_DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
            check_name(name)?;
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }
    /// The names from the root down; none for the root itself.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0[1..].split('/').filter(|name| !name.is_empty())
    }
    /// The directory that holds this path, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.rfind('/')?;
        let parent = if slash == 0 { Self::root() } else { Self(self.0[..slash].to_owned()) };
        Some((parent, &self.0[slash + 1..]))
    }
    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// The rule that the name or the whole path breaks.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        check_name(name)?;
        let separator = if self.is_root() { "" } else { "/" };
        Self::parse(&format!("{}{separator}{name}", self.0))
    }
    /// Whether this path is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root()
            || self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}
impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_paths_are_refused_with_the_reason() {
        let long = "x".repeat(256);
        for (text, reason) in [
            ("", PathError::NotAbsolute),
            ("a", PathError::NotAbsolute),
            ("//", PathError::EmptyName),
            ("/a/", PathError::EmptyName),
            ("/a/../b", PathError::Dots),
            ("/.", PathError::Dots),
            ("/a\0", PathError::ForbiddenByte),
            (&format!("/{long}"), PathError::NameTooLong),
            (&"/a".repeat(257), PathError::TooDeep),
            (&format!("/{}", "a/".repeat(2100)), PathError::PathTooLong),
        ] {
            assert_eq!(FilePath::parse(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn a_path_splits_into_parent_and_name_and_joins_back() {
        for text in ["/a", "/a/b", "/é/x y"] {
            let path = FilePath::parse(text).unwrap();
            let (parent, name) = path.split().unwrap();
            assert_eq!(parent.join(name).unwrap(), path);
            assert!(path.is_within(&parent));
        }
        assert!(!FilePath::parse("/ab").unwrap().is_within(&FilePath::parse("/a").unwrap()));
        assert_eq!(FilePath::root().split(), None);
    }
}
