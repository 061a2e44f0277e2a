use super::*;
use vmferry_plugin_api::delta::double;

const MIB: usize = 1 << 20;
const SIZE: usize = 7 * MIB;
const DISK: &str = "disk-a";

/// A folder with whatever a test makes of it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn config(&self) -> Config {
        Config { folder: self.0.path().to_str().expect("UTF-8").to_owned() }
    }

    /// Sends what `chunks` says, and makes it a point.
    fn keep(&self, id: &str, base: Option<&str>, chunks: &[(usize, u8)]) -> Point {
        let delta = double::Delta::new(info(base), chunks.iter().map(|&(index, byte)| chunk(index, byte)));
        let receipt = InFolder::write(self.config(), draft(id), &delta).expect("written");
        let receipts = || vec![DiskReceipt { disk: DISK.to_owned(), receipt: receipt.clone(), digest: None }];
        let point = InFolder::commit(self.config(), draft(id), receipts()).expect("committed");
        assert_eq!(InFolder::commit(self.config(), draft(id), receipts()).expect("committed again"), point);
        point
    }

    fn layout(&self, point: &str, since: Option<&str>) -> Vec<(u64, u64)> {
        let extents = InFolder::layout(self.config(), point, DISK, since).expect("a layout");
        extents.into_iter().map(|extent| (extent.offset, extent.length)).collect()
    }

    fn disk(&self, point: &str) -> Vec<u8> {
        let restore = double::Restore::of_size(SIZE);
        let extents = vec![Extent { offset: 0, length: SIZE as u64 }];
        InFolder::read(self.config(), point, DISK, extents, &restore).expect("read");
        restore.disk()
    }

    fn verify(&self, point: &str) -> Vec<Damage> {
        InFolder::verify(self.config(), point, &double::Restore::default()).expect("verified")
    }
}

fn info(base: Option<&str>) -> Info {
    Info {
        disk: DISK.to_owned(),
        content: "content".to_owned(),
        size: SIZE as u64,
        kind: base.map_or(Kind::Full, |base| Kind::Delta(base.to_owned())),
        expected_bytes: 0,
        extensions: Vec::new(),
    }
}

fn draft(id: &str) -> Draft {
    Draft {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: id.bytes().map(i64::from).sum(),
        base: None,
        metadata: r#"{"format":1}"#.to_owned(),
        extensions: Vec::new(),
    }
}

/// A chunk full of one byte; the last one of the disk is shorter.
fn chunk(index: usize, byte: u8) -> (u64, Vec<u8>) {
    let offset = index * CHUNK as usize;
    (offset as u64, vec![byte; (CHUNK as usize).min(SIZE - offset)])
}

fn disk(chunks: &[(usize, u8)]) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    for &(index, byte) in chunks {
        let (offset, bytes) = chunk(index, byte);
        disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    disk
}

#[test]
fn a_delta_adds_to_its_base_and_the_base_stays_as_it_was() {
    let place = Place::new();
    place.keep("a", None, &[(0, 1), (3, 2)]);
    let point = place.keep("b", Some("a"), &[(0, 0), (1, 3)]);
    assert_eq!(point.disks[0].stored, 3 << 20);
    assert_eq!(place.disk("a"), disk(&[(0, 1), (3, 2)]));
    assert_eq!(place.disk("b"), disk(&[(1, 3), (3, 2)]));
    assert_eq!(place.layout("a", None), [(0, CHUNK), (3 * CHUNK, MIB as u64)]);
    assert_eq!(place.layout("b", Some("a")), [(0, 2 * CHUNK)]);
    let points = InFolder::points(place.config(), Some("vm")).expect("points");
    assert_eq!(points.iter().map(|point| &*point.id).collect::<Vec<_>>(), ["a", "b"]);
    InFolder::delete(place.config(), "a").expect("deleted");
    assert_eq!(place.disk("b"), disk(&[(1, 3), (3, 2)]), "it needs its base no more");
}

#[test]
fn bytes_that_changed_are_found_where_they_are_and_remembered() {
    let place = Place::new();
    place.keep("a", None, &[(0, 1), (2, 2)]);
    assert_eq!(place.verify("a"), []);
    let file = place.0.path().join("a").join("disk-a.raw");
    let mut bytes = std::fs::read(&file).expect("the disk");
    bytes[4 * MIB + 5] ^= 1;
    std::fs::write(&file, bytes).expect("changed");
    let found = place.verify("a");
    assert_eq!(
        found.iter().map(|damage| damage.extent.map(|extent| extent.offset)).collect::<Vec<_>>(),
        [Some(2 * CHUNK)]
    );
    let points = InFolder::points(place.config(), None).expect("points");
    assert!(points[0].damaged.as_ref().is_some_and(|said| said.contains(DISK)));
}

#[test]
fn what_was_begun_is_garbage_unless_its_run_is_under_way() {
    let place = Place::new();
    place.keep("a", None, &[(0, 1)]);
    let broken = double::Delta::new(info(None), [chunk(0, 1)]).breaking_off();
    assert!(InFolder::write(place.config(), draft("b"), &broken).is_err());
    let collect = |drafts: &[&str], apply| {
        let drafts = drafts.iter().map(|&draft| draft.to_owned()).collect();
        let found = InFolder::collect(place.config(), drafts, apply).expect("collected");
        found.into_iter().map(|garbage| garbage.what).collect::<Vec<_>>()
    };
    assert_eq!(collect(&["b"], true), Vec::<String>::new());
    assert_eq!(collect(&[], true), ["b.draft"]);
    assert_eq!(collect(&[], true), Vec::<String>::new());
    assert_eq!(InFolder::points(place.config(), None).expect("points").len(), 1);
}

#[test]
fn a_point_is_held_until_it_need_not_be() {
    let place = Place::new();
    place.keep("a", None, &[]);
    for held in [true, false] {
        InFolder::hold(place.config(), "a", held).expect("kept");
        assert_eq!(InFolder::points(place.config(), None).expect("points")[0].held, held);
    }
    assert_eq!(InFolder::metadata(place.config(), "a").expect("kept"), r#"{"format":1}"#);
}

#[test]
fn no_identity_leads_out_of_the_folder() {
    let place = Place::new();
    for id in ["../a", "a/b", ".", "", "a.draft"] {
        assert!(InFolder::delete(place.config(), id).is_err(), "{id}");
    }
}
