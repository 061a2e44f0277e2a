//! XVA files in the eyes of Python's tar and of xva-img.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};
use vmferry_disk::xva::{Archive, Writer};
use vmferry_peers::{Peer, script};

const MIB: usize = 1 << 20;
const METADATA: &str = "<value>a VM</value>";

/// Data in its first, fourth and last MiB, of which the last is short.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 6 * MIB + 512];
    for at in [5, 3 * MIB + 100, 6 * MIB + 511] {
        disk[at] = 7;
    }
    disk
}

fn write(path: &Path, disks: &[(&str, &[u8])]) {
    let mut writer = Writer::new(File::create_new(path).unwrap(), METADATA.as_bytes()).unwrap();
    for (id, disk) in disks {
        writer.begin(id, disk.len() as u64).unwrap();
        writer.put(0, disk).unwrap();
    }
    writer.finish().unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn python_reads_what_we_write() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vm.xva");
    let (first, second) = (disk(), vec![0; 2 * MIB]);
    write(&path, &[("Ref:10", &first), ("Ref:9", &second)]);
    let found: Json = serde_json::from_str(&python.run([script("py/xva.py"), path]).await?)?;
    assert_eq!(found["metadata"], METADATA);
    assert_eq!(found["disks"], json!({ "Ref:10": sha256(&first), "Ref:9": sha256(&second) }));
    assert_eq!(found["names"].as_array().unwrap().len(), 1 + 2 * (3 + 2), "{found}");
    Ok(())
}

/// xva-img knows the checksums of old exports alone, so it makes one and reads none of ours; it writes whole MiB.
#[tokio::test]
async fn an_xva_that_xva_img_makes_is_read() -> anyhow::Result<()> {
    let Some(xva_img) = Peer::system("xva-img")? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    fs::create_dir_all(path("vm/Ref:4"))?;
    fs::write(path("vm/ova.xml"), METADATA)?;
    let disk = &disk()[..4 * MIB];
    fs::write(path("disk.raw"), disk)?;
    xva_img.run(["disk-import", &text("vm/Ref:4/"), &text("disk.raw")]).await?;
    xva_img.run(["package", &text("theirs.xva"), &text("vm/ova.xml"), &text("vm/Ref:4/")]).await?;
    let archive = Archive::open(File::open(path("theirs.xva"))?)?;
    assert_eq!(archive.metadata(), METADATA.as_bytes());
    let found = archive.disk("Ref:4").unwrap();
    let mut whole = vec![0; found.length as usize];
    for byte in (0..found.length).step_by(MIB) {
        if let Some(piece) = archive.chunk(found, byte)? {
            whole[piece.offset as usize..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
    }
    assert!(whole == disk);
    Ok(())
}
