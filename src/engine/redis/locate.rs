//! Finds what stands at an offset of an archived stream.

use super::resp::Scanner;
use crate::engine::Located;
use crate::error::{Error, Result};
use crate::position::Position;
use crate::record::Piece;
use tokio::sync::mpsc;

/// The work of `Source::locate`.
pub(super) async fn locate(
    from: Position,
    mut pieces: mpsc::Receiver<Result<Piece>>,
    offset: u64,
) -> Result<Located> {
    let mut scanner = Scanner::of(&from.log, from.offset, from.db);
    let found = |scanner: &Scanner| {
        let position = Position { db: scanner.db(), ..Position::new(from.log.clone(), offset) };
        Located { position, last_at: None }
    };
    if offset < from.offset {
        return Err(Error::bug(format!("locate {}:{offset} from behind it, {from}", from.log)));
    }
    while scanner.offset() < offset {
        let bytes = match pieces.recv().await.transpose()? {
            Some(Piece::Bytes(bytes)) => bytes,
            Some(Piece::Log { at, .. }) if at.is_same_place(&here(&from, &scanner)) => continue,
            Some(Piece::Log { .. }) | None => {
                return Err(Error::corrupt(format!(
                    "the archive of {} ends at {}, before {offset}",
                    from.log,
                    scanner.offset()
                )));
            }
        };
        let left = usize::try_from(offset - scanner.offset()).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left).unwrap_or(&bytes);
        let mut at = 0;
        while scanner.next(bytes, &mut at)?.is_some() {}
    }
    if scanner.at_record_start() {
        return Ok(found(&scanner));
    }
    let start = scanner.record_start();
    Err(Error::corrupt(format!(
        "{}:{offset} lies within the record that begins at {start}",
        from.log
    )))
}

fn here(from: &Position, scanner: &Scanner) -> Position {
    Position::new(from.log.clone(), scanner.offset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const STREAM: &[u8] =
        b"*1\r\n$4\r\nPING\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n7\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n";

    async fn at(offset: u64) -> Result<Located> {
        let (sender, pieces) = mpsc::channel(99);
        let from = Position { db: 2, ..Position::new("id", 1000) };
        sender.send(Ok(Piece::Log { at: from.clone(), head: Bytes::new() })).await.unwrap();
        for piece in STREAM.chunks(5) {
            sender.send(Ok(Piece::Bytes(Bytes::copy_from_slice(piece)))).await.unwrap();
        }
        drop(sender);
        locate(from, pieces, offset).await
    }

    #[tokio::test]
    async fn a_record_boundary_has_its_database_and_other_places_are_refused() {
        let ends = [0, 14, 37, STREAM.len()];
        for offset in 0..=STREAM.len() {
            let found = at(1000 + offset as u64).await;
            assert_eq!(found.is_ok(), ends.contains(&offset), "{offset}: {found:?}");
        }
        assert_eq!(at(1014).await.unwrap().position.db, 2);
        assert_eq!(at(1037).await.unwrap().position.db, 7);
        let error = at(1000 + STREAM.len() as u64 + 1).await.unwrap_err();
        assert_eq!(error.class(), crate::error::Class::Corrupt);
        assert!(error.to_string().contains("ends at 1057"), "{error}");
    }
}
