//! What qemu-img makes is read where its order allows it, and refused where not.

use std::path::Path;

use vmferry_disk::extent::Extent;
use vmferry_disk::qcow2::{Content, Head, Qcow2Error};

use crate::model::read;
use crate::qemu_img;

const MIB: u64 = 1 << 20;

/// A raw disk with data at these places, a whole cluster of 64 KiB each.
fn raw_disk(path: &Path, size: u64, places: &[u64]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for place in places {
        file.write_all_at(&[0x5a; 64 << 10], *place).unwrap();
    }
}

fn head_of(path: &Path) -> Result<Option<Head>, Qcow2Error> {
    Ok(read(&std::fs::read(path).unwrap(), Content::Whole, 1 << 16)?.0)
}

#[test]
fn images_of_one_l2_table_are_read() {
    if qemu_img::is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    let places = [0, 64 << 10, 7 * MIB, 400 * MIB - (64 << 10)];
    raw_disk(&raw, 400 * MIB, &places);
    let expected: Vec<Extent> = [(0, 128 << 10), (7 * MIB, 64 << 10), (400 * MIB - (64 << 10), 64 << 10)]
        .map(|(offset, length)| Extent { offset, length })
        .into();
    for options in ["compat=0.10", "compat=1.1", "compat=1.1,lazy_refcounts=on"] {
        let arguments = ["convert", "-O", "qcow2", "-o", options].map(Path::new);
        qemu_img::run(arguments.into_iter().chain([raw.as_path(), &qcow2]));
        let head = head_of(&qcow2).unwrap().unwrap();
        assert_eq!(head.virtual_size(), 400 * MIB);
        assert_eq!(head.extents().iter().collect::<Vec<_>>(), expected, "{options}");
    }
}

#[test]
fn an_empty_image_of_3_tib_has_no_ranges() {
    if qemu_img::is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qcow2 = folder.path().join("disk.qcow2");
    qemu_img::run(["create", "-f", "qcow2"].map(Path::new).into_iter().chain([qcow2.as_path(), Path::new("3T")]));
    // Sparse, the file ends somewhere in its L1 table, and a stream of it would not.
    let stream = [std::fs::read(&qcow2).unwrap(), vec![0; 1 << 20]].concat();
    let (head, _) = read(&stream, Content::Whole, 1 << 16).unwrap();
    let head = head.expect("a complete head");
    assert_eq!((head.virtual_size(), head.extents().is_empty()), (3 << 40, true));
}

#[test]
fn what_a_stream_cannot_tell_is_refused() {
    if qemu_img::is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (raw, small, qcow2) = (file("disk.raw"), file("small.raw"), file("disk.qcow2"));
    // Two L2 tables: qemu puts data between them.
    raw_disk(&raw, 1 << 30, &[0, 600 * MIB]);
    raw_disk(&small, 64 * MIB, &[0]);
    let check = |arguments: &[&str], paths: &[&Path], expected: fn(&Qcow2Error) -> bool| {
        qemu_img::run(arguments.iter().map(Path::new).chain(paths.iter().copied()));
        let refused = head_of(&qcow2).unwrap_err();
        assert!(expected(&refused), "{arguments:?}: {refused}");
    };
    let qcow2 = qcow2.as_path();
    check(&["convert", "-O", "qcow2"], &[&raw, qcow2], |error| matches!(error, Qcow2Error::DataBeforeTables { .. }));
    check(&["convert", "-c", "-O", "qcow2"], &[&small, qcow2], |error| matches!(error, Qcow2Error::Compressed { .. }));
    let subclusters = ["convert", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=64k"];
    check(&subclusters, &[&small, qcow2], |error| matches!(error, Qcow2Error::Subclusters { .. }));
    check(&["create", "-f", "qcow2", "-F", "raw", "-b"], &[&small, qcow2], |error| {
        matches!(error, Qcow2Error::BackingFile { .. })
    });
    let data_file = format!("data_file={}", file("data.raw").display());
    check(&["create", "-f", "qcow2", "-o", &data_file], &[qcow2, Path::new("64M")], |error| {
        matches!(error, Qcow2Error::ExternalDataFile { .. })
    });
    let luks =
        ["create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    check(&luks, &[qcow2, Path::new("64M")], |error| matches!(error, Qcow2Error::Encrypted { .. }));
}
