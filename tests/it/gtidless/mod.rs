//! MySQL without GTIDs, through the whole program: captured, exported and restored by file and
//! offset, and every break of the history noticed although no GTID tells of it.

mod capture;
mod harness;
mod modes;
mod restore;
