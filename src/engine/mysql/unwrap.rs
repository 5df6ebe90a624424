//! Makes the triggers, events and routines of a dump loadable and exact.
//!
//! `mysqldump` wraps triggers and events into version comments. A definition that was created as
//! one of several statements sent at once keeps the `;` behind it, and then the wrapped statement
//! is no SQL any more: such a dump cannot be loaded (seen with 9.7). A routine loses that `;`.
//! Here the wrapping is taken off, and `DO 0` put behind such a `;`, so that the stock client
//! sends two statements at once and the server stores the same text again.
//!
//! Only lines at which a statement with `;;` as its delimiter begins or ends are touched: rows
//! never are, since their lines end in `;`.
//!
//! **Invariant:** what is held back is bounded by one line of a definition, never by rows.

use bytes::{Bytes, BytesMut};

/// Bytes that are enough to see how a line begins or ends.
const EDGE: usize = 64;

/// How wrapped definitions begin, and what becomes of it.
const WRAPPINGS: [(&[u8], &[u8]); 2] = [
    (b"/*!50003 CREATE*/ /*!50017 DEFINER=", b"*/ /*!50003 TRIGGER "),
    (b"/*!50106 CREATE*/ /*!50117 DEFINER=", b"*/ /*!50106 EVENT "),
];

/// Rewrites a dump that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Unwrap {
    held: BytesMut,
    /// Whether a part of the current line was handed out already.
    within_line: bool,
    /// Whether the line before ended a statement: another one begins here.
    at_start: bool,
    /// Whether a wrapping was taken off and its end is still to come.
    unwrapped: bool,
}

impl Unwrap {
    /// Takes the next bytes and gives what is ready.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Bytes {
        self.held.extend_from_slice(bytes);
        let mut ready = BytesMut::with_capacity(self.held.len());
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let line = self.held.split_to(end + 1);
            self.line(&line, &mut ready);
        }
        // A long line goes through as it comes, but for its end.
        let definition = self.at_start && !self.within_line && begins(&self.held);
        if self.held.len() > 2 * EDGE && !definition {
            let sure = self.held.len() - EDGE;
            ready.extend_from_slice(&self.held.split_to(sure));
            self.within_line = true;
        }
        ready.freeze()
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// Takes a line with its line break, or its end if it was begun before.
    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        let mut line = line;
        if self.at_start
            && !self.within_line
            && let Some((head, name)) = unwrap_head(line)
        {
            for part in [b"CREATE DEFINER=", head, b" "] {
                out.extend_from_slice(part);
            }
            line = name;
            self.unwrapped = true;
        }
        self.within_line = false;
        let wrapped_end = [&b" */ ;;\n"[..], b" */;;\n"];
        let end = wrapped_end.iter().find_map(|end| line.strip_suffix(*end));
        match end {
            Some(body) if self.unwrapped => {
                out.extend_from_slice(body);
                // On a line of its own: the body may end in a comment.
                let end: &[u8] = if body.ends_with(b";") { b" DO 0\n;;\n" } else { b"\n;;\n" };
                out.extend_from_slice(end);
                self.unwrapped = false;
            }
            _ => match line.strip_suffix(b"; ;;\n") {
                Some(body) if !self.unwrapped => {
                    out.extend_from_slice(body);
                    out.extend_from_slice(b"; DO 0 ;;\n");
                }
                _ => out.extend_from_slice(line),
            },
        }
        self.at_start = line.ends_with(b";;\n");
    }
}

fn begins(line: &[u8]) -> bool {
    WRAPPINGS.iter().any(|(start, _)| line.starts_with(start))
}

/// The definer in a wrapped head, and what stands from the kind of object on.
fn unwrap_head(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (start, middle) = WRAPPINGS.iter().find(|(start, _)| line.starts_with(start))?;
    let rest = line.get(start.len()..)?;
    let at = rest.windows(middle.len()).position(|part| part == *middle)?;
    // The kind stays: TRIGGER or EVENT with its blank.
    let kind = middle.iter().rposition(|byte| *byte == b'3' || *byte == b'6')? + 2;
    Some((rest.get(..at)?, rest.get(at + kind..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DUMP: &str = "INSERT INTO `t` VALUES (1,'; */ ;;');\n\
        DELIMITER ;;\n\
        /*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER `a` BEFORE \
        INSERT ON `t` FOR EACH ROW set new.id = 2; */;;\n\
        DELIMITER ;\n\
        DELIMITER ;;\n\
        /*!50003 SET time_zone             = 'SYSTEM' */ ;;\n\
        /*!50106 CREATE*/ /*!50117 DEFINER=`a*/b`@`%`*/ /*!50106 EVENT `e` ON SCHEDULE EVERY 1 \
        DAY DO begin\n\
        /*!50106 CREATE*/ /*!50117 DEFINER=x*/ /*!50106 EVENT `no`\n\
        end -- note */ ;;\n\
        DELIMITER ;\n\
        CREATE DEFINER=`root`@`localhost` FUNCTION `f2`() RETURNS int\n\
        return 2; ;;\n\
        CREATE DEFINER=`root`@`localhost` PROCEDURE `p2`()\n\
        begin select 1; end ;;\n";

    const UNWRAPPED: &str = "INSERT INTO `t` VALUES (1,'; */ ;;');\n\
        DELIMITER ;;\n\
        CREATE DEFINER=`root`@`localhost` TRIGGER `a` BEFORE \
        INSERT ON `t` FOR EACH ROW set new.id = 2; DO 0\n;;\n\
        DELIMITER ;\n\
        DELIMITER ;;\n\
        /*!50003 SET time_zone             = 'SYSTEM' */ ;;\n\
        CREATE DEFINER=`a*/b`@`%` EVENT `e` ON SCHEDULE EVERY 1 \
        DAY DO begin\n\
        /*!50106 CREATE*/ /*!50117 DEFINER=x*/ /*!50106 EVENT `no`\n\
        end -- note\n;;\n\
        DELIMITER ;\n\
        CREATE DEFINER=`root`@`localhost` FUNCTION `f2`() RETURNS int\n\
        return 2; DO 0 ;;\n\
        CREATE DEFINER=`root`@`localhost` PROCEDURE `p2`()\n\
        begin select 1; end ;;\n";

    fn unwrapped(dump: &[u8], piece: usize) -> Vec<u8> {
        let mut unwrap = Unwrap::default();
        let mut out = vec![];
        for part in dump.chunks(piece) {
            out.extend_from_slice(&unwrap.push(part));
            assert!(unwrap.held.len() < 1000);
        }
        out.extend_from_slice(&unwrap.finish());
        out
    }

    proptest! {
        #[test]
        fn definitions_are_unwrapped_however_the_dump_arrives(piece in 1..2000_usize) {
            let out = unwrapped(DUMP.as_bytes(), piece);
            prop_assert_eq!(String::from_utf8(out).unwrap(), UNWRAPPED);
        }

        #[test]
        fn anything_else_goes_through_as_it_is(
            text in "[-a; */\n'(]{0,400}", piece in 1..500_usize,
        ) {
            let text = text.replace("; ;;\n", "");
            prop_assert_eq!(unwrapped(text.as_bytes(), piece), text.as_bytes());
        }
    }

    #[test]
    fn long_rows_are_not_held_back() {
        let mut row = vec![b'x'; 1_000_000];
        row.extend_from_slice(b"; ;;x;\n");
        assert_eq!(unwrapped(&row, 300), row);
    }
}
