//! Samples a source's clock against its replication offset, beside the stream.
//!
//! The stream itself carries no time. A sample is read in one `MULTI; TIME; ROLE; EXEC`, so it is
//! exact whatever the replication lag.
//!
//! **Invariant:** a sample is of the server that the stream comes from: after a reconnect the
//! run id must still be the same.

use super::control::{Control, Sample};
use crate::engine::Endpoint;
use crate::engine::sample::Sampler;
use crate::error::{Error, Result};

/// Reads the clock of the server whose run id is `identity`.
pub(super) struct Clock {
    /// A connection to it.
    pub(super) control: Option<Control>,
    /// Where it is.
    pub(super) endpoint: Endpoint,
    /// Its run id.
    pub(super) identity: String,
}

impl Sampler for Clock {
    type Sample = Sample;

    async fn sample(&mut self) -> Result<Option<Sample>> {
        if self.control.is_none() {
            let mut fresh = Control::connect(&self.endpoint).await?;
            if fresh.server().await?.identity != self.identity {
                let endpoint = &self.endpoint;
                return Err(Error::unavailable(format!("{endpoint} is another server now")));
            }
            self.control = Some(fresh);
        }
        match &mut self.control {
            Some(control) => match control.sample().await? {
                // A replica's clock says nothing of what it has not received.
                Some(sample) if !sample.is_master => {
                    Err(Error::unavailable(format!("{} is no master any more", self.endpoint)))
                }
                sample => Ok(sample),
            },
            None => Ok(None),
        }
    }

    fn disconnect(&mut self) {
        self.control = None;
    }
}
