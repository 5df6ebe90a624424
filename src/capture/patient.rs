//! Writing to a disk that may be full: the capture waits then, and loses nothing.

use super::Shared;
use crate::error::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long to wait before writing again to a disk that is full.
const FULL_DISK_RETRY: Duration = Duration::from_secs(1);

/// A file that waits for space instead of failing on a full disk. While it waits nothing is
/// taken from the source, which keeps what was not taken.
#[derive(Debug)]
pub(super) struct PatientFile {
    file: File,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl PatientFile {
    pub(super) fn create(path: &Path, shared: Arc<Shared>) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        loop {
            match options.open(path) {
                Ok(file) => return Ok(Self { file, path: path.to_owned(), shared }),
                Err(error) if is_full(&error) && !shared.stop.load(Ordering::Acquire) => {
                    wait_for_space(path, &shared);
                }
                Err(error) => {
                    return Err(error).unavailable(|| format!("create {}", path.display()));
                }
            }
        }
    }

    pub(super) fn sync(&self) -> Result<()> {
        // A failed sync may have dropped pages: it is never tried again on the same file. The
        // capture is recovered from what is really on disk, and the source asked for the rest.
        self.file.sync_data().unavailable(|| format!("sync {}", self.path.display()))
    }
}

impl Write for PatientFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            #[expect(
                clippy::disallowed_methods,
                reason = "a short write is this method's contract"
            )]
            match self.file.write(bytes) {
                Err(error) if is_full(&error) && !self.shared.stop.load(Ordering::Acquire) => {
                    wait_for_space(&self.path, &self.shared);
                }
                written => {
                    if self.shared.disk_full.swap(false, Ordering::AcqRel) {
                        tracing::info!("there is space again: the capture goes on");
                    }
                    return written;
                }
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn wait_for_space(path: &Path, shared: &Shared) {
    if !shared.disk_full.swap(true, Ordering::AcqRel) {
        tracing::error!(
            "the disk is full: the capture waits, nothing is lost as long as the source keeps its \
             log; free space for {}",
            path.display()
        );
    }
    std::thread::sleep(FULL_DISK_RETRY);
}
