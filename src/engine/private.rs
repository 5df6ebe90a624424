//! A folder for temporary files that nobody else can enter, and that is removed with its owner.

use crate::error::{Context, Result};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A folder that only this user can enter, removed with all its content when dropped.
#[derive(Debug)]
pub(in crate::engine) struct PrivateDir(PathBuf);

impl PrivateDir {
    /// Makes one below the folder for temporary files.
    pub(in crate::engine) fn create() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("pitr-{}", uuid::Uuid::new_v4().simple()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .unavailable(|| format!("create folder {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// The folder.
    pub(in crate::engine) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("remove folder {}: {error}", self.0.display());
        }
    }
}
