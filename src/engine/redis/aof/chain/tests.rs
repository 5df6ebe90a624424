//! What becomes of a capture when its append-only files go on, end, shrink or vanish.

use super::*;
use rstest::rstest;

/// A server's folder, as files.
struct Files {
    root: tempfile::TempDir,
}

const A: &str = "a.aof.1.incr.aof";
const B: &str = "a.aof.2.incr.aof";
const C: &str = "a.aof.3.incr.aof";

impl Files {
    fn new() -> Self {
        let files = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir(files.dir()).unwrap();
        files
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("appendonlydir")
    }

    fn pins(&self) -> PathBuf {
        self.root.path().join("pins")
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.dir().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir().join(name)).unwrap();
    }

    /// Writes the manifest as a server does: another file under the same name.
    fn manifest(&self, increments: &[&str]) {
        let mut text = String::from("file a.aof.1.base.rdb seq 1 type b\n");
        for name in increments {
            text += &format!("file {name} seq {} type i\n", seq(name).unwrap());
        }
        self.put("temp-a.manifest", &text);
        let (new, old) = (self.dir().join("temp-a.manifest"), self.dir().join("a.aof.manifest"));
        durable::supersede(&new, &old).unwrap();
    }

    fn begin(&self) -> Chain {
        Chain::begin(&self.dir(), &self.pins()).unwrap()
    }

    fn resume(&self, at: (&str, u64), last: &str, same_server: bool) -> Result<Chain, String> {
        let at = Position::new(at.0, at.1);
        let last = (at.clone(), Bytes::copy_from_slice(last.as_bytes()));
        let last = Some(&last).filter(|(_, bytes)| !bytes.is_empty());
        Chain::resume(&self.dir(), &self.pins(), &at, last, same_server).unwrap()
    }
}

/// What a look gives, as text.
fn look(chain: &mut Chain, offset: u64, written: Option<(&str, u64)>) -> String {
    let written = written.map(|(name, end)| (name.to_owned(), end));
    match chain.step(offset, 100, written.as_ref()).unwrap() {
        Step::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
        other => format!("{other:?}"),
    }
}

#[test]
fn of_the_last_file_only_what_is_confirmed_is_read() {
    let files = Files::new();
    files.put(A, "12345678");
    files.manifest(&[A]);
    let mut chain = files.begin();
    assert_eq!(look(&mut chain, 0, None), "Idle");
    assert_eq!(look(&mut chain, 0, Some((B, 8))), "Idle");
    assert_eq!(look(&mut chain, 0, Some((A, 5))), "12345");
    assert_eq!(look(&mut chain, 5, Some((A, 5))), "Idle");
    assert_eq!(look(&mut chain, 5, Some((A, 99))), "678");
    files.put(A, "1234");
    assert_eq!(look(&mut chain, 5, Some((A, 99))), "Shrunk(4)");
}

#[test]
fn a_file_that_was_seen_beside_its_successor_is_read_to_its_end_and_then_the_successor() {
    let files = Files::new();
    files.put(A, "1234");
    files.manifest(&[A]);
    let mut chain = files.begin();
    files.put(B, "");
    files.put(A, "123456");
    files.manifest(&[A, B]);
    assert_eq!(look(&mut chain, 0, None), "123456", "it is written no more");
    // The base is done: the server removes what is in it.
    files.put(B, "789");
    files.manifest(&[B]);
    files.remove(A);
    assert_eq!(look(&mut chain, 4, None), "56", "a link keeps it");
    assert_eq!(look(&mut chain, 6, None), format!("Next({B:?})"));
    chain.advance();
    assert_eq!((chain.name(), look(&mut chain, 0, Some((B, 3)))), (B.into(), "789".into()));
    // Both are linked until the first is archived.
    assert_eq!(names_in(&files.pins()).unwrap().len(), 2);
    chain.release_before(B).unwrap();
    assert_eq!(names_in(&files.pins()).unwrap(), [B]);
}

#[test]
fn the_next_number_alone_proves_nothing() {
    let files = Files::new();
    files.put(A, "1234");
    files.manifest(&[A]);
    let mut chain = files.begin();
    files.put(B, "56");
    files.manifest(&[B]);
    files.remove(A);
    assert_eq!(look(&mut chain, 0, None), "1234", "what is there is read");
    let broken = look(&mut chain, 4, None);
    assert!(broken.starts_with("Broken(") && broken.contains(B), "{broken}");
    // And so it stays, whatever comes.
    files.put(A, "");
    files.manifest(&[A, B]);
    assert!(look(&mut chain, 4, None).starts_with("Broken("));
}

#[test]
fn what_was_linked_is_gone_on_with_after_the_server_removed_it() {
    let files = Files::new();
    files.put(A, "1234");
    files.manifest(&[A]);
    let mut chain = files.begin();
    files.put(B, "56");
    files.manifest(&[A, B]);
    assert_eq!(look(&mut chain, 0, None), "1234");
    drop(chain);
    files.manifest(&[B]);
    files.remove(A);
    let mut chain = files.resume((A, 2), "12", true).unwrap();
    assert_eq!(look(&mut chain, 2, None), "34");
    assert_eq!(look(&mut chain, 4, None), format!("Next({B:?})"));
    // Two rewrites while nobody looked: the link to B is there, and what follows it is not known.
    files.put(C, "7");
    files.manifest(&[C]);
    files.remove(B);
    let mut chain = files.resume((A, 2), "12", true).unwrap();
    assert_eq!(look(&mut chain, 4, None), format!("Next({B:?})"));
    chain.advance();
    assert_eq!(look(&mut chain, 0, None), "56");
    assert!(look(&mut chain, 2, None).starts_with("Broken("));
}

#[rstest]
#[case::short((A, 9), "12345678", true, "lost writes")]
#[case::other_bytes((A, 4), "1284", true, "other bytes")]
#[case::other_run_without_proof((A, 4), "", false, "cannot be proved")]
#[case::gone((B, 4), "1234", true, "removed by the server")]
fn a_file_that_is_not_proved_to_be_the_one_captured_is_not_gone_on_with(
    #[case] at: (&str, u64),
    #[case] last: &str,
    #[case] same_server: bool,
    #[case] why: &str,
) {
    let files = Files::new();
    files.put(A, "12345678");
    files.manifest(&[A]);
    drop(files.begin());
    let reason = files.resume(at, last, same_server).unwrap_err();
    assert!(reason.contains(why), "{reason}");
    assert!(files.resume((A, 4), "1234", false).is_ok(), "the same bytes are proof");
}

#[test]
fn another_file_of_the_same_name_is_not_taken_for_the_one_that_is_linked() {
    let files = Files::new();
    files.put(A, "1234");
    files.manifest(&[A]);
    drop(files.begin());
    files.remove(A);
    files.put(A, "123456");
    let reason = files.resume((A, 4), "1234", true).unwrap_err();
    assert!(reason.contains("another file"), "{reason}");
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one() {
    let files = Files::new();
    files.put(A, "1234");
    files.manifest(&[A]);
    let mut chain = files.begin();
    fs::remove_dir_all(files.dir()).unwrap();
    assert!(chain.step(0, 9, None).is_err());
    assert_eq!(read_manifest(&files.dir()).unwrap_err().class(), crate::error::Class::Usage);
}
