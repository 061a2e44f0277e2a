//! Objects as files: the parts of a name are folders, its last part the file.
//!
//! A file is written under `tmp/` and renamed when it is whole, so nobody ever sees a part of one. Its bytes, and the names in its folder,
//! are synced when the repository asks for that; until then a power failure may leave anything of them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::SystemTime;
use vmferry_plugin_api::files::{EntryKind, File, Folder, is_exists};
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_repository::{Object, Piece, Storage, TEMPORARY};

/// Files that wait for a sync. When there are more, they are synced without being asked for: the kernel has begun long ago.
const MOST_UNSYNCED: usize = 64;
/// Attempts at a name whose folder another host removes, empty, at the same time.
const ATTEMPTS: usize = 3;

/// A folder with objects in it.
pub struct FolderStore {
    root: Folder,
    unsynced: RefCell<Unsynced>,
}

#[derive(Default)]
struct Unsynced {
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl FolderStore {
    /// The folder at this absolute path, which has to be there and granted.
    pub fn open(path: &str) -> Result<Self, Error> {
        Ok(Self { root: Folder::open(path)?, unsynced: RefCell::default() })
    }

    /// A file that nobody else has the name of.
    fn temporary(&self) -> Result<(String, File), Error> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unique = u64::from_le_bytes(random()?);
        let name = format!("{TEMPORARY}{}-{unique:016x}", since.as_secs());
        let file = self.in_folder(&name, || self.root.create_new(&name))?;
        Ok((name, file))
    }

    /// Does what needs the folder of `name`, and makes that folder first if it is not there.
    fn in_folder<T>(&self, name: &str, act: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let mut attempt = 1;
        loop {
            match act() {
                Err(error) if error.code == ErrorCode::NotFound && attempt < ATTEMPTS => {
                    attempt += 1;
                    let above = |(at, _): (usize, &str)| &name[..at];
                    for folder in name.match_indices('/').map(above) {
                        self.root.create_folder(folder)?;
                        self.unsynced.borrow_mut().folders.insert(parent(folder).to_owned());
                    }
                }
                done => return done,
            }
        }
    }

    /// Remembers what has to be synced for `name` to be there for good.
    fn made(&self, name: &str) -> Result<(), Error> {
        let mut unsynced = self.unsynced.borrow_mut();
        unsynced.files.insert(name.to_owned());
        unsynced.folders.insert(parent(name).to_owned());
        let full = unsynced.files.len() >= MOST_UNSYNCED;
        drop(unsynced);
        if full { self.sync() } else { Ok(()) }
    }

    fn write(&self, file: &File, pieces: &[Piece<'_>]) -> Result<(), Error> {
        let output = file.output(0)?;
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => output.write_all(bytes)?,
                Piece::Payload(payload) => output.splice_all(&payload.body()?, payload.length())?,
                Piece::Range { name, offset, length } => {
                    output.splice_all(&self.root.open_file(name)?.input(*offset)?, *length)?;
                }
            }
        }
        Ok(())
    }

    fn sync_all(&self, Unsynced { files, folders }: &Unsynced) -> Result<(), Error> {
        // What another host removed meanwhile need not be synced.
        let unless_gone = |synced: Result<(), Error>| match synced {
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            synced => synced,
        };
        for name in files {
            unless_gone(self.root.open_file(name).and_then(|file| file.sync()))?;
        }
        for name in folders {
            let synced = match name.as_str() {
                "" => self.root.sync(),
                name => self.root.folder(name).and_then(|folder| folder.sync()),
            };
            unless_gone(synced)?;
        }
        Ok(())
    }

    fn add(&self, folder: &str, prefix: &str, objects: &mut Vec<Object>) -> Result<(), Error> {
        let (entries, above) = match folder {
            "" => (self.root.list(), String::new()),
            _ => (self.root.folder(folder).and_then(|folder| folder.list()), format!("{folder}/")),
        };
        let entries = match entries {
            // Another host removed it, empty, or nothing was ever put there. What is listed as empty may be thrown away, so the
            // error alone is not believed.
            Err(error)
                if error.code == ErrorCode::NotFound && !folder.is_empty() && self.root.stat(folder)?.is_none() =>
            {
                return Ok(());
            }
            entries => entries?,
        };
        for entry in entries {
            let name = format!("{above}{}", entry.name);
            match entry.kind {
                EntryKind::File if name.starts_with(prefix) => {
                    // One that is gone by now is in no listing.
                    if let Some(stat) = self.root.stat(&name)? {
                        objects.push(Object { name, length: stat.size });
                    }
                }
                EntryKind::Folder if format!("{name}/").starts_with(prefix) => self.add(&name, prefix, objects)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Storage for FolderStore {
    fn put(&self, name: &str, pieces: &[Piece<'_>]) -> Result<(), Error> {
        let (temporary, file) = self.temporary()?;
        let written =
            self.write(&file, pieces).and_then(|()| self.in_folder(name, || self.root.rename(&temporary, name)));
        if written.is_err() {
            // The failure that matters is the first one; `collect` removes what stays.
            let _ = self.root.remove(&temporary);
        }
        written?;
        self.made(name)
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let (temporary, file) = self.temporary()?;
        // Synced before it has its name: the object that says what a repository is can be made only once, whole or not at all.
        let created = file.write_at(0, bytes).and_then(|()| file.sync()).and_then(|()| {
            match self.in_folder(name, || self.root.link(&temporary, name)) {
                Ok(()) => Ok(true),
                Err(error) if is_exists(&error) => Ok(false),
                // Without hard links, as on some shares, two hosts could both make it: only of the repository itself would that
                // matter, and that is made once.
                Err(_) if self.root.stat(name)?.is_none() => self.root.rename(&temporary, name).map(|()| true),
                Err(_) => Ok(false),
            }
        });
        let removed = self.root.remove(&temporary);
        let created = created?;
        removed?;
        if created {
            self.made(name)?;
        }
        Ok(created)
    }

    fn open(&self, name: &str, offset: u64, _length: u64) -> Result<Option<Input>, Error> {
        match self.root.open_file(name) {
            Ok(file) => file.input(offset).map(Some),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let mut objects = Vec::new();
        self.add(parent(prefix), prefix, &mut objects)?;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn delete(&self, name: &str) -> Result<(), Error> {
        self.root.remove(name)?;
        let folder = parent(name);
        self.unsynced.borrow_mut().folders.insert(folder.to_owned());
        if folder.contains('/') && self.root.remove_folder(folder).is_ok() {
            self.unsynced.borrow_mut().folders.insert(parent(folder).to_owned());
        }
        Ok(())
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        // Who made it may have made its folders as well.
        let folders = name.match_indices('/').map(|(at, _)| parent(&name[..at]).to_owned());
        self.unsynced.borrow_mut().folders.extend(folders);
        self.made(name)
    }

    fn sync(&self) -> Result<(), Error> {
        let unsynced = self.unsynced.take();
        let synced = self.sync_all(&unsynced);
        if synced.is_err() {
            let mut again = self.unsynced.borrow_mut();
            again.files.extend(unsynced.files);
            again.folders.extend(unsynced.folders);
        }
        synced
    }
}

/// The folder of a name; empty for the root.
fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let none = |error| Error::with_code(ErrorCode::Unsupported, format!("the host gives no random bytes: {error}"));
    getrandom::fill(&mut bytes).map_err(none)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmferry_plugin_api::files::double;

    fn names(store: &FolderStore, prefix: &str) -> Vec<String> {
        store.list(prefix).expect("listed").into_iter().map(|object| object.name).collect()
    }

    fn put(store: &FolderStore, name: &str, bytes: &[u8]) {
        store.put(name, &[Piece::Bytes(bytes.into())]).expect("made");
    }

    fn get(store: &FolderStore, name: &str, offset: u64) -> Option<Vec<u8>> {
        store.open(name, offset, 100).expect("looked at").map(|input| input.read(100).expect("read"))
    }

    #[test]
    fn objects_are_files_that_are_there_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = FolderStore::open(scratch.path().to_str().expect("UTF-8")).expect("opened");
        assert_eq!(names(&store, "packs/"), Vec::<String>::new());
        put(&store, "packs/a/one", b"12345");
        put(&store, "packs/a/one~2", b"345");
        put(&store, "packs/b/two", b"6");
        put(&store, "repository", b"it");
        let (offset, length) = (1, 3);
        store
            .put(
                "packs/b/three",
                &[Piece::Bytes(b"<"[..].into()), Piece::Range { name: "packs/a/one", offset, length }],
            )
            .expect("made");
        assert_eq!(get(&store, "packs/b/three", 0).as_deref(), Some(&b"<234"[..]));
        assert_eq!(get(&store, "packs/a/one", 3).as_deref(), Some(&b"45"[..]));
        assert_eq!(get(&store, "packs/c/none", 0), None);
        assert_eq!(names(&store, "packs/a/one"), ["packs/a/one", "packs/a/one~2"]);
        assert_eq!(names(&store, "packs/"), ["packs/a/one", "packs/a/one~2", "packs/b/three", "packs/b/two"]);
        assert_eq!(store.list("packs/b/two").expect("listed")[0].length, 1);
        put(&store, "packs/b/two", b"66");
        assert_eq!(get(&store, "packs/b/two", 0).as_deref(), Some(&b"66"[..]), "replaced");

        store.delete("packs/a/one").expect("deleted");
        store.delete("packs/a/one").expect("no error");
        store.delete("packs/a/one~2").expect("deleted");
        store.sync().expect("synced");
        assert!(!scratch.path().join("packs/a").exists(), "an empty folder goes");
        assert!(store.put("packs/a/half", &[Piece::Range { name: "absent", offset, length }]).is_err());
        assert_eq!(names(&store, "tmp/"), Vec::<String>::new());
        assert_eq!(names(&store, "packs/"), ["packs/b/three", "packs/b/two"]);
    }

    #[test]
    fn a_listing_lacks_what_vanishes_meanwhile_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = FolderStore::open(scratch.path().to_str().expect("UTF-8")).expect("opened");
        for name in ["packs/a/1", "packs/a/2", "packs/a/3", "packs/b/1", "packs/c/1"] {
            put(&store, name, b"it");
        }
        double::on_list(|folder| {
            if folder.ends_with("packs") {
                std::fs::remove_dir_all(folder.join("b")).expect("removed");
            } else if folder.ends_with("a") {
                std::fs::remove_file(folder.join("2")).expect("removed");
            } else if folder.ends_with("c") {
                std::fs::remove_dir_all(folder).expect("removed");
            }
        });
        assert_eq!(names(&store, "packs/"), ["packs/a/1", "packs/a/3"]);
    }

    #[test]
    fn what_could_not_be_synced_is_so_the_next_time() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = FolderStore::open(scratch.path().to_str().expect("UTF-8")).expect("opened");
        let [folder, elsewhere] = ["points/a", "elsewhere"].map(|name| scratch.path().join(name));
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::write(folder.join("b"), "it").expect("made");
        store.adopt("points/a/b").expect("adopted");
        let wanted = ["", "points", "points/a"].map(str::to_owned).into();
        assert_eq!(store.unsynced.borrow().folders, wanted, "whoever made it may have made these");
        std::fs::rename(&folder, &elsewhere).expect("renamed");
        std::fs::write(&folder, "no folder").expect("made");
        store.sync().expect_err("there is no folder");
        assert!(store.unsynced.borrow().files.contains("points/a/b"));
        assert_eq!(store.unsynced.borrow().folders, wanted);
        std::fs::remove_file(&folder).expect("removed");
        std::fs::rename(&elsewhere, &folder).expect("renamed");
        store.sync().expect("synced");
        assert!(store.unsynced.borrow().files.is_empty());
    }

    #[test]
    fn one_of_two_makes_an_object() {
        let scratch = tempfile::tempdir().expect("a folder");
        let open = || FolderStore::open(scratch.path().to_str().expect("UTF-8")).expect("opened");
        let (first, second) = (open(), open());
        assert!(first.create("points/a/b", b"first").expect("made"));
        assert!(!second.create("points/a/b", b"second").expect("looked at"));
        assert_eq!(get(&second, "points/a/b", 0).as_deref(), Some(&b"first"[..]));
        first.sync().expect("synced");
        assert_eq!(names(&first, "tmp/"), Vec::<String>::new());
    }
}
