//! The canary of a Redis: the key `pitr:canary` of database 0, with the time in µs since 1970.

use super::control::Control;
use crate::clock::Timestamp;
use crate::engine::Endpoint;
use crate::error::{Error, Result};

const KEY: &str = "pitr:canary";

/// Writes the server's time.
pub(super) async fn write(endpoint: &Endpoint) -> Result<()> {
    let mut control = Control::connect(endpoint).await?;
    let at = control.time().await?.as_micros().to_string();
    let written: Result<()> = control.ask(&["SET", KEY, &at]).await;
    written.map_err(|error| {
        let rule = "ACL SETUSER <user> +set ~pitr:canary, or [drill] canary = false";
        error.context(format!("write the canary of {endpoint}")).hint(rule)
    })
}

/// The time that it holds, if it is there.
pub(super) async fn read(control: &mut Control) -> Result<Option<Timestamp>> {
    let found: Option<String> = control.ask(&["GET", KEY]).await?;
    let Some(text) = found else { return Ok(None) };
    let micros = text.parse().map_err(|_| Error::corrupt(format!("{KEY} is {text:.40}")))?;
    Ok(Some(Timestamp::from_micros(micros)))
}
