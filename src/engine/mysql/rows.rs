//! Row events: how many rows there are in one, and where each begins and ends.
//!
//! Layout: `Rows_event` in the server's `libs/mysql/binlog/event/rows_event.h`; of partial updates
//! `Rows_log_event::unpack_current_row` in its `sql/log_event.cc`. Values are walked over by their
//! lengths as the bytes come, so a row of any size is counted without being held. Only where rows
//! are asked for their bytes are kept, up to [`ROW_BYTES_MAX`].
//!
//! **Invariant:** a row is counted only when its last byte was seen, and an event that does not end
//! with a row is an error.

use super::event::{Reader, kind};
use super::table::{Size, Table, number, types};
use std::sync::Arc;

/// Longest row image that is kept, in bytes. Longer ones are counted only.
pub(super) const ROW_BYTES_MAX: usize = 64 << 20;

/// What a row event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Insert,
    Update,
    Delete,
}

/// What stands before the rows of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowsHead {
    /// Number of the table.
    pub(super) table: u64,
    /// What is done.
    pub(super) change: Change,
    /// Whether JSON may be given by what changed in it.
    pub(super) partial: bool,
    /// Whether the rows are compressed, as a MariaDB does.
    pub(super) compressed: bool,
    /// How many columns the event speaks of.
    pub(super) width: usize,
    /// Which of them are in the row before, and after.
    pub(super) present: [Vec<u8>; 2],
    /// Length of all that, from the end of the event's head on.
    pub(super) len: usize,
}

/// Whether a type is one of row events.
pub(super) fn is_rows(kind: u8) -> bool {
    matches!(
        kind,
        kind::WRITE_ROWS_V1..=kind::DELETE_ROWS_V1
            | kind::WRITE_ROWS..=kind::DELETE_ROWS
            | kind::PARTIAL_UPDATE_ROWS
            | kind::MARIA_WRITE_ROWS_COMPRESSED_V1..=kind::MARIA_DELETE_ROWS_COMPRESSED
    )
}

impl RowsHead {
    /// Reads the beginning of a row event's body. `None` if it is none.
    pub(super) fn parse(kind: u8, body: &[u8]) -> Option<Self> {
        use Change::{Delete, Insert, Update};
        let (change, has_extra, compressed) = match kind {
            kind::WRITE_ROWS_V1 => (Insert, false, false),
            kind::UPDATE_ROWS_V1 => (Update, false, false),
            kind::DELETE_ROWS_V1 => (Delete, false, false),
            kind::WRITE_ROWS => (Insert, true, false),
            kind::UPDATE_ROWS | kind::PARTIAL_UPDATE_ROWS => (Update, true, false),
            kind::DELETE_ROWS => (Delete, true, false),
            kind::MARIA_WRITE_ROWS_COMPRESSED_V1 => (Insert, false, true),
            kind::MARIA_UPDATE_ROWS_COMPRESSED_V1 => (Update, false, true),
            kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => (Delete, false, true),
            kind::MARIA_WRITE_ROWS_COMPRESSED => (Insert, true, true),
            kind::MARIA_UPDATE_ROWS_COMPRESSED => (Update, true, true),
            kind::MARIA_DELETE_ROWS_COMPRESSED => (Delete, true, true),
            _ => return None,
        };
        let mut at = Reader(body);
        let table = number(&mut at)?;
        at.u16()?;
        if has_extra {
            let len = usize::from(at.u16()?);
            at.bytes(len.checked_sub(2)?)?;
        }
        let width = usize::try_from(at.lenenc()?).ok()?;
        let first = at.bytes(width.div_ceil(8))?.to_vec();
        let present = match change {
            Insert => [vec![], first],
            Delete => [first, vec![]],
            Update => [first, at.bytes(width.div_ceil(8))?.to_vec()],
        };
        let partial = kind == kind::PARTIAL_UPDATE_ROWS;
        let len = body.len() - at.0.len();
        Some(Self { table, change, partial, compressed, width, present, len })
    }
}

/// A row, or one before and after a change, as its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Whether JSON is given by what changed in it: a bit for each JSON column of the table.
    pub(super) partial: Vec<u8>,
    /// Which of the columns present are NULL, and the values of the others.
    pub(super) bytes: Vec<u8>,
    /// How many bytes it has, if too many to be kept.
    pub(super) too_long: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before an image; of a partial update, before the byte that says whether it is one.
    Start,
    PartialBits,
    Nulls,
    /// Before the length of the column's value.
    Length,
    /// In a value of which so many bytes are left.
    Value(u64),
}

/// Walks over the rows of an event.
#[derive(Debug)]
pub(super) struct RowWalk {
    table: Arc<Table>,
    change: Change,
    partial: bool,
    /// Indexes of the columns in the image before and after.
    present: [Vec<usize>; 2],
    json_columns: usize,
    state: State,
    /// Which image: 0 is the one before.
    which: usize,
    /// Which of the columns present comes next.
    next: usize,
    nulls: Vec<u8>,
    /// The beginning of something that came in pieces.
    held: Vec<u8>,
    rows: u64,
    seen: bool,
    /// The images of the current row, where rows are kept.
    kept: Option<[Image; 2]>,
    image_len: u64,
}

impl RowWalk {
    /// Walks the rows behind `head`.
    ///
    /// # Errors
    /// A sentence, if the table's columns are not known, or not those of the event.
    pub(super) fn new(head: &RowsHead, table: Arc<Table>, keep: bool) -> Result<Self, String> {
        let columns = table.columns.as_ref().map_err(|why| format!("{}: {why}", table.name))?;
        if columns.len() != head.width {
            let (width, known) = (head.width, columns.len());
            return Err(format!("{}: rows of {width} columns, not {known}", table.name));
        }
        let indexes = |bits: &Vec<u8>| -> Vec<usize> {
            let is_set = |n: &usize| bits.get(n / 8).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
            (0..head.width).filter(is_set).collect()
        };
        let present = [indexes(&head.present[0]), indexes(&head.present[1])];
        let json_columns = columns.iter().filter(|c| c.kind == types::JSON).count();
        Ok(Self {
            change: head.change,
            partial: head.partial,
            present,
            json_columns,
            state: State::Start,
            which: usize::from(head.change == Change::Insert),
            next: 0,
            nulls: vec![],
            held: vec![],
            rows: 0,
            seen: false,
            kept: keep.then(Default::default),
            image_len: 0,
            table,
        })
    }

    /// The table.
    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// What is done.
    pub(super) fn change(&self) -> Change {
        self.change
    }

    /// The columns of the image before (0) or after (1).
    pub(super) fn present(&self, which: usize) -> &[usize] {
        self.present.get(which).map_or(&[], Vec::as_slice)
    }

    /// Rows so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the next bytes. `each` gets the images of every row that ends in them, where rows are
    /// kept.
    ///
    /// # Errors
    /// A sentence, if they are no rows of the table.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&Self, [Image; 2]) -> crate::error::Result<()>,
    ) -> crate::error::Result<Result<(), String>> {
        self.seen |= !bytes.is_empty();
        while !bytes.is_empty() || self.needs_nothing() {
            match self.step(&mut bytes) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => return Ok(Err(why)),
            }
            if self.state == State::Start && self.ended() {
                if let Some(kept) = &mut self.kept {
                    let images = std::mem::take(kept);
                    each(self, images)?;
                }
                // A row without a byte would go on for ever.
                if self.is_empty_row() {
                    return Ok(Err(format!("{}: bytes behind a row without any", self.table.name)));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Whether the event may end here.
    ///
    /// # Errors
    /// A sentence, if it may not.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        if !self.seen && self.is_empty_row() {
            // One row of which no column was logged.
            self.rows = 1;
            return Ok(());
        }
        let is_first = self.which == usize::from(self.change == Change::Insert);
        if self.state == State::Start && is_first && self.held.is_empty() {
            return Ok(());
        }
        Err(format!("{}: a row event ends within a row", self.table.name))
    }

    fn is_empty_row(&self) -> bool {
        let images = match self.change {
            Change::Insert => &self.present[1..],
            Change::Delete => &self.present[..1],
            Change::Update => &self.present[..],
        };
        !self.partial && images.iter().all(Vec::is_empty)
    }

    /// Whether the next step can be done without another byte.
    fn needs_nothing(&self) -> bool {
        match self.state {
            State::Start => self.which == 1 && self.change == Change::Update && self.is_bare(),
            State::PartialBits => self.json_columns == 0,
            State::Nulls => self.columns().is_empty(),
            State::Length => self.is_null() || !matches!(self.size(), Some(Size::Prefixed(_))),
            State::Value(left) => left == 0,
        }
    }

    /// Whether the image has no bytes at all.
    fn is_bare(&self) -> bool {
        !self.partial && self.columns().is_empty()
    }

    /// Whether the next column is NULL.
    fn is_null(&self) -> bool {
        self.nulls.get(self.next / 8).is_some_and(|byte| byte >> (self.next % 8) & 1 == 1)
    }

    fn columns(&self) -> &[usize] {
        self.present(self.which)
    }

    /// How long the next column's value is, if there is another one.
    fn size(&self) -> Option<Size> {
        let index = *self.columns().get(self.next)?;
        let columns = self.table.columns.as_ref().ok()?;
        columns.get(index).map(|column| column.size)
    }

    /// Whether the image that just ended was the last one of its row; begins the next one.
    fn ended(&mut self) -> bool {
        if self.next == usize::MAX {
            self.next = 0;
            self.image_len = 0;
            if self.change == Change::Update && self.which == 0 {
                self.which = 1;
                return false;
            }
            self.which = usize::from(self.change == Change::Insert);
            self.rows += 1;
            return true;
        }
        false
    }

    /// Takes so many bytes together, however they come.
    fn gather(&mut self, bytes: &mut &[u8], len: usize) -> bool {
        let more = len.saturating_sub(self.held.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at_checked(more).unwrap_or((bytes, &[]));
        self.held.extend_from_slice(taken);
        *bytes = rest;
        self.held.len() >= len
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.image_len += bytes.len() as u64;
        let Some(image) = self.kept.as_mut().and_then(|kept| kept.get_mut(self.which)) else {
            return;
        };
        if self.image_len > ROW_BYTES_MAX as u64 {
            image.bytes = vec![];
            image.too_long = Some(self.image_len);
        } else {
            image.bytes.extend_from_slice(bytes);
        }
    }

    fn keep_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.keep(&held);
        self.held = held;
        self.held.clear();
    }

    /// One step. `false` if it needs more bytes.
    fn step(&mut self, bytes: &mut &[u8]) -> Result<bool, String> {
        match self.state {
            State::Start if self.partial && self.which == 1 => {
                if !self.gather(bytes, 1) {
                    return Ok(false);
                }
                let options = self.held.first().copied().unwrap_or_default();
                self.held.clear();
                self.state = match options {
                    0 => State::Nulls,
                    1 => State::PartialBits,
                    _ => return Err(format!("{}: unknown options of a row", self.table.name)),
                };
            }
            State::Start => self.state = State::Nulls,
            State::PartialBits => {
                if !self.gather(bytes, self.json_columns.div_ceil(8)) {
                    return Ok(false);
                }
                let bits = std::mem::take(&mut self.held);
                if let Some([_, after]) = &mut self.kept {
                    after.partial = bits;
                }
                self.state = State::Nulls;
            }
            State::Nulls => {
                if !self.gather(bytes, self.columns().len().div_ceil(8)) {
                    return Ok(false);
                }
                self.nulls.clone_from(&self.held);
                self.keep_held();
                self.next = 0;
                self.state = State::Length;
            }
            State::Length => return Ok(self.length(bytes)),
            State::Value(left) => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let (taken, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
                self.keep(taken);
                *bytes = rest;
                let left = left - taken.len() as u64;
                self.state = State::Value(left);
                if left > 0 {
                    return Ok(false);
                }
                self.next += 1;
                self.state = State::Length;
            }
        }
        Ok(true)
    }

    fn length(&mut self, bytes: &mut &[u8]) -> bool {
        let Some(size) = self.size() else {
            // Behind the last column.
            self.next = usize::MAX;
            self.state = State::Start;
            return true;
        };
        if self.is_null() {
            self.next += 1;
            return true;
        }
        let len = match size {
            Size::Fixed(len) => len as u64,
            Size::Prefixed(prefix) => {
                if !self.gather(bytes, prefix) {
                    return false;
                }
                let len = self.held.iter().rev().fold(0_u64, |len, b| len << 8 | u64::from(*b));
                self.keep_held();
                len
            }
        };
        self.state = State::Value(len);
        true
    }
}
