//! A MySQL connection with something in the middle that changes the types of binlog events.

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The type of a ROWS_QUERY event, which has the text of a statement.
const ROWS_QUERY: u8 = 29;

/// Stands between pitr and a server. A ROWS_QUERY event whose statement has the words
/// `becomes type N` in it reaches pitr as one of type N, with a right checksum: so pitr meets
/// events that no server can be made to write.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to the server on this port of 127.0.0.1.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                tokio::spawn(async move {
                    drop(tokio::io::copy(&mut from_client, &mut to_server).await);
                });
                tokio::spawn(async move { drop(change(from_server, to_client).await) });
            }
        });
        Self { port, task }
    }

    /// `mysql://root@127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes frames on, until the connection ends.
async fn change(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    loop {
        let mut head = [0; 4];
        from.read_exact(&mut head).await?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
        let mut payload = vec![0; len];
        from.read_exact(&mut payload).await?;
        if let [0, event @ ..] = &mut payload[..]
            && event.len() > 23
            && event[4] == ROWS_QUERY
            && let Some(kind) = wanted(event)
        {
            event[4] = kind;
            // No flags: whoever does not know a ROWS_QUERY may pass over it.
            event[17..19].fill(0);
            let (rest, crc) = event.split_last_chunk_mut::<4>().unwrap();
            *crc = crc32fast::hash(rest).to_le_bytes();
        }
        to.write_all(&head).await?;
        to.write_all(&payload).await?;
    }
}

fn wanted(event: &[u8]) -> Option<u8> {
    let text = String::from_utf8_lossy(event);
    let (_, rest) = text.split_once("becomes type ")?;
    rest.split(' ').next()?.parse().ok()
}
