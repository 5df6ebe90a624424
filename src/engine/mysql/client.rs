//! The connection that the binlog comes over: a few settings, then the dump.
//!
//! It asks nothing that needs an answer to think about; that goes over [`super::sql`]. The dump
//! is `COM_BINLOG_DUMP_GTID` with a file name, a 64-bit position and an empty set, which begins
//! exactly at that byte (MySQL manual, "COM_BINLOG_DUMP_GTID"; `sql/rpl_binlog_sender.cc`).
//! A MySQL takes that only with `gtid_mode=ON`; without, `COM_BINLOG_DUMP` with 32 bits has to do,
//! which is enough for the beginnings of files. MariaDB has only that one, and changes the events
//! for replicas that do not say that they know all of them (`@mariadb_slave_capability`;
//! `sql/sql_repl.cc`).

use super::auth::{self, ServerError};
use super::flavor::Flavor;
use super::packet::{FragmentReader, Packets, receive, send};
use crate::engine::Endpoint;
use crate::engine::tls::Stream;
use crate::error::{Error, Result};
use std::time::Duration;

/// How often the source sends a heartbeat while nothing happens.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Ask for heartbeats of version 2, which know positions of 64 bits.
const USE_HEARTBEAT_V2: u16 = 0x02;

/// Ask MariaDB for ANNOTATE_ROWS events: the bytes are those of its file only with them.
const SEND_ANNOTATE_ROWS: u16 = 0x02;

const COM_BINLOG_DUMP: u8 = 0x12;
const COM_QUERY: u8 = 0x03;
const COM_REGISTER_REPLICA: u8 = 0x15;
const COM_BINLOG_DUMP_GTID: u8 = 0x1e;

/// How pitr calls itself as a replica.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    /// Its `server_id`: unlike the source's and those of its other replicas.
    pub(crate) server_id: u32,
    /// Its `server_uuid`. A source ends an older dump to the same one.
    pub(crate) uuid: String,
}

/// A connection that is logged in and does not dump yet.
pub(crate) struct Client {
    packets: Packets<Stream>,
    peer: String,
}

impl Client {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Unavailable, if the server cannot be reached. Usage, if it does not let us in.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self> {
        let (packets, _) = auth::connect(endpoint).await?;
        Ok(Self { packets, peer: endpoint.to_string() })
    }

    /// Sends a command that is answered with OK or an error.
    async fn command(&mut self, command: &[u8]) -> Result<()> {
        self.packets.codec_mut().restart();
        send(&mut self.packets, command, &self.peer).await?;
        let answer = receive(&mut self.packets, &self.peer).await?;
        match (answer.first(), ServerError::parse(&answer)) {
            (Some(0x00), _) => Ok(()),
            (_, Some(error)) => Err(error.for_operator(&self.peer)),
            _ => Err(Error::corrupt(format!("{}: not an answer to a command", self.peer))),
        }
    }

    async fn set(&mut self, statement: &str) -> Result<()> {
        let mut command = vec![COM_QUERY];
        command.extend_from_slice(statement.as_bytes());
        self.command(&command).await
    }

    /// Registers as a replica and asks for the binlog from `position` of `file` on, by the old
    /// command where the source does not take the new one (it is not `named`). With `semi_sync`,
    /// the source may wait for answers: see [`super::semisync`].
    ///
    /// # Errors
    /// As the server says. That it cannot dump from there comes with the first fragment only.
    pub(crate) async fn dump(
        mut self,
        (flavor, named): (Flavor, bool),
        replica: &Replica,
        file: &str,
        position: u64,
        semi_sync: bool,
    ) -> Result<FragmentReader> {
        let beat = HEARTBEAT.as_nanos();
        self.set(&format!("SET @master_heartbeat_period={beat}, @source_heartbeat_period={beat}"))
            .await?;
        // Not `@@global.binlog_checksum`: a source that has NONE now would then cut the checksums
        // off when they are switched on later, and the bytes would not be those of its files.
        self.set("SET @master_binlog_checksum='CRC32', @source_binlog_checksum='CRC32'").await?;
        let uuid = &replica.uuid;
        self.set(&format!("SET @slave_uuid='{uuid}', @replica_uuid='{uuid}'")).await?;

        if flavor.is_maria() {
            self.set("SET @mariadb_slave_capability=4").await?;
        }
        if semi_sync {
            // The names of MySQL since 8.0.26, and those of before and of MariaDB. A server that
            // has nothing to do with it takes them for variables like any other.
            self.set("SET @rpl_semi_sync_replica=1, @rpl_semi_sync_slave=1").await?;
        }

        let id = replica.server_id.to_le_bytes();
        let mut register = vec![COM_REGISTER_REPLICA];
        register.extend_from_slice(&id);
        // No host, user or password (one length byte each), port 0, rank 0, source id 0.
        register.extend_from_slice(&[0; 3 + 2 + 4 + 4]);
        self.command(&register).await?;

        let dump = if flavor.is_maria() || !named {
            let position = u32::try_from(position)
                .map_err(|_| Error::bug(format!("dump {file}:{position}, beyond 32 bits")))?;
            let mut dump = vec![COM_BINLOG_DUMP];
            dump.extend_from_slice(&position.to_le_bytes());
            let flags = if flavor.is_maria() { SEND_ANNOTATE_ROWS } else { USE_HEARTBEAT_V2 };
            dump.extend_from_slice(&flags.to_le_bytes());
            dump.extend_from_slice(&id);
            dump.extend_from_slice(file.as_bytes());
            dump
        } else {
            let mut dump = vec![COM_BINLOG_DUMP_GTID];
            dump.extend_from_slice(&USE_HEARTBEAT_V2.to_le_bytes());
            dump.extend_from_slice(&id);
            dump.extend_from_slice(&(file.len() as u32).to_le_bytes());
            dump.extend_from_slice(file.as_bytes());
            dump.extend_from_slice(&position.to_le_bytes());
            // An empty set: 8 bytes of its length, of which all are zero.
            dump.extend_from_slice(&8_u32.to_le_bytes());
            dump.extend_from_slice(&[0; 8]);
            dump
        };
        self.packets.codec_mut().restart();
        send(&mut self.packets, &dump, &self.peer).await?;
        Ok(FragmentReader::new(self.packets, self.peer))
    }
}

/// Logs in both ways that pitr does, and leaves: first over SQL, then as a replica would. Both
/// are let in, or refused with the same words.
pub async fn knock(endpoint: &Endpoint) -> (Result<()>, Result<()>) {
    let sql = super::sql::connect(endpoint).await;
    let replica = Client::connect(endpoint).await;
    (sql.map(drop), replica.map(drop))
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("peer", &self.peer).finish_non_exhaustive()
    }
}
