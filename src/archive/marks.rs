//! Instants that somebody named: `marks/<name>.json`, each written once.
//!
//! There are few of them, and no index: they are read when somebody asks.
//!
//! **Invariant:** a mark is filed only when everything before its places is durable.

use super::Archive;
use crate::error::{Error, Result};
use crate::manifest::{BASELINE_JSON_MAX, NamedMark, names};

impl Archive {
    /// Files a mark. It is durable when this returns.
    ///
    /// # Errors
    /// Refused, if there is one of that name; unavailable, if it cannot be written.
    pub fn file_mark(&self, mark: &NamedMark) -> Result<()> {
        self.refuse_taken(&mark.name)?;
        self.store().put_new(&names::named_mark(&mark.name), &mark.encode()?)
    }

    /// Refuses a name that is not usable, or that a mark has already.
    ///
    /// # Errors
    /// Usage or refused.
    pub fn refuse_taken(&self, name: &str) -> Result<()> {
        check(name)?;
        if self.store().exists(&names::named_mark(name))? {
            return Err(Error::refused(format!("there is a mark named {name} already")).hint(
                "marks are never changed: choose another name; `pitr log --marks` lists all",
            ));
        }
        Ok(())
    }

    /// The mark of that name.
    ///
    /// # Errors
    /// Usage, if there is none; corrupt, if it is not what was filed.
    pub fn named_mark(&self, name: &str) -> Result<NamedMark> {
        check(name)?;
        let object = names::named_mark(name);
        if !self.store().exists(&object)? {
            return Err(Error::usage(format!("no mark is named {name}"))
                .hint("`pitr log --marks` lists all"));
        }
        self.read_mark(&object)
    }

    /// All marks, oldest first.
    ///
    /// # Errors
    /// Unavailable, if one cannot be read; corrupt, if one is not what was filed.
    pub fn named_marks(&self) -> Result<Vec<NamedMark>> {
        let mut objects = self.store().list(&format!("{}/", names::MARKS))?;
        // A crash may have left one that was not finished, under a name that is not final.
        objects.retain(|object| object.strip_suffix(".json").is_some());
        let marks = objects.iter().map(|object| self.read_mark(object));
        let mut marks: Vec<_> = marks.collect::<Result<_>>()?;
        marks.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
        Ok(marks)
    }

    fn read_mark(&self, object: &str) -> Result<NamedMark> {
        let json = self.store().get(object, BASELINE_JSON_MAX)?;
        let mark = NamedMark::decode(&json).map_err(|error| error.context(object))?;
        if mark.archive != self.meta().archive || names::named_mark(&mark.name) != object {
            return Err(Error::corrupt(format!("{object} belongs to another archive or name")));
        }
        Ok(mark)
    }
}

fn check(name: &str) -> Result<()> {
    if names::is_usable(name) {
        return Ok(());
    }
    Err(Error::usage(format!("{name:?} cannot be the name of a mark"))
        .hint("use letters, digits, `-`, `_` and `.`, at most 64 of them"))
}
