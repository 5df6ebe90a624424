//! Names and bytes of an archive.
//!
//! A store keeps objects under names such as `shop/t0001/seg-00000000000000000001.zst`. It knows
//! nothing about what is in them.
//!
//! **Invariant:** an object appears whole and durable or not at all, and is never overwritten.

mod local;

pub use local::Local;

use crate::error::{Error, Result};

/// Longest name of an object, in bytes; what the common object stores allow.
const NAME_MAX: usize = 1024;
/// Longest part of a name between two `/`, in bytes; what the common file systems allow.
const PART_MAX: usize = 255;

/// Checks the name of an object: parts separated by `/`, none of them empty, `.` or `..`.
///
/// # Errors
/// Usage, if a name could lead out of the archive, or mean something else on another store.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = |why| Err(Error::usage(format!("not a name of an object: {name:?} ({why})")));
    if name.is_empty() || name.len() > NAME_MAX {
        return wrong("it must have 1 to 1,024 bytes");
    }
    if name.chars().any(|c| c.is_control() || matches!(c, '\\' | ':')) {
        return wrong("it must not have control characters, \\ or :");
    }
    for part in name.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return wrong("empty parts, . and .. lead somewhere else");
        }
        if part.len() > PART_MAX {
            return wrong("a part has more than 255 bytes");
        }
    }
    Ok(())
}
