//! What is handed over is the log that was planned with, or an error.

use super::super::cut::tests::{FILES, archive};
use super::*;
use crate::error::Class;
use rstest::rstest;

/// Everything that is handed over from the beginning of the first file: the bytes, and how it ends.
fn handed_over(store: &Local, segments: &[SegmentMeta]) -> (Vec<u8>, Result<()>) {
    let place = Position::new(FILES[0].0, 0);
    let open = read_segments(store.clone(), segments.to_vec(), place, Arc::default());
    let (mut pieces, mut bytes) = (open(), vec![]);
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Ok(Piece::Bytes(more)) => bytes.extend_from_slice(&more),
            Ok(Piece::Log { .. }) => {}
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}

#[test]
fn the_whole_log_is_handed_over() {
    let (_dir, archive, segments) = archive(&[]);
    let (bytes, end) = handed_over(archive.store(), &segments);
    end.unwrap();
    assert_eq!(bytes, FILES.map(|(_, _, bytes)| bytes).concat());
}

#[rstest]
#[case::first(0)]
#[case::between(1)]
#[case::last(2)]
fn a_segment_that_has_less_than_was_planned_with_is_an_error(#[case] short: usize) {
    let (_dir, archive, mut segments) = archive(&[]);
    segments[short].totals.end.offset += 1;
    let (bytes, end) = handed_over(archive.store(), &segments);
    let error = end.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
    let (number, is) = (short + 1, FILES[short].2.len());
    let said = format!("segment {number} gave the log up to {is}, not to {}", is + 1);
    assert!(error.to_string().contains(&said), "{error}");
    // Nothing of the next one.
    assert_eq!(
        bytes,
        FILES[..=short].iter().map(|(_, _, bytes)| *bytes).collect::<Vec<_>>().concat()
    );
}

#[test]
fn a_segment_that_is_another_one_than_was_planned_with_is_an_error() {
    let (_dir, archive, mut segments) = archive(&[]);
    segments[1].header.opened_at =
        segments[1].header.opened_at.after(std::time::Duration::from_secs(1));
    let (bytes, end) = handed_over(archive.store(), &segments);
    assert_eq!(end.unwrap_err().class(), Class::Corrupt);
    assert_eq!(bytes, FILES[0].2);
}
