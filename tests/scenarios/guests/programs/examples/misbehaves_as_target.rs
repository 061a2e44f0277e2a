//! A target that does with disk data what its settings say.

use serde::Deserialize;
use vmferry_plugin_api::files::Folder;
use vmferry_plugin_api::target::*;
use vmferry_plugin_api::{lock, seal};

struct Guest;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    does: Does,
    /// A folder that it has, for what needs one.
    #[serde(default)]
    folder: String,
    /// Where it tries to go instead.
    #[serde(default)]
    path: String,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Does {
    /// Takes everything and keeps nothing.
    #[default]
    Nothing,
    /// Panics at the first chunk.
    Trap,
    /// Computes forever.
    Spin,
    /// Sleeps forever.
    Sleep,
    /// Works on files of its folder for two seconds when it deletes: writes, reads, lists, copies.
    Work,
    /// Holds on to every chunk.
    HoldChunks,
    /// Holds on to the streams of chunks that it has let go of.
    HoldBodies,
    /// Opens a file of its folder again and again.
    HoldFiles,
    /// The same, and keeps a stream of each instead.
    HoldStreams,
    /// Opens pieces and fills none.
    HoldPieces,
    /// Answers after the first chunk.
    AnswerEarly,
    /// Answers as if nothing were wrong with a source that broke off.
    IgnoreTheBreak,
    /// Answers a receipt of 65,537 bytes.
    LongReceipt,
    /// Reads the chunks itself, and writes them back itself.
    Copy,
    /// Reads its own memory's worth of a path that it was not granted.
    Leave,
    /// Keeps the first chunk compressed and sealed in its folder.
    Seal,
    /// Seals and opens as much as is allowed, then more.
    SealMuch,
    /// Takes a lock, and answers its epoch.
    Lock,
    /// Takes a lock, and renews it again and again.
    HammerLocks,
    /// Puts the later piece first.
    Backwards,
    /// Puts a piece whose digest is of another.
    Damage,
}

const FILE: &str = "chunk";
const KEY: &str = "backup";

impl Target for Guest {
    type Config = Config;

    fn describe() -> Description {
        description!("Does what it is told.")
    }

    fn data_shape(config: Config) -> Result<Shape, Error> {
        let chunk_size = if config.path == "shape" { 12345 } else { 1 << 20 };
        Ok(Shape { chunk_size, only_newest: false, extensions: Vec::new() })
    }

    fn points(config: Config, _: Option<&str>) -> Result<Vec<Point>, Error> {
        Ok(vec![point(&config.path)])
    }

    fn metadata(config: Config, _: &str) -> Result<String, Error> {
        Ok(config.path)
    }

    fn layout(_: Config, _: &str, _: &str, _: Option<&str>) -> Result<Vec<Extent>, Error> {
        Ok(vec![Extent { offset: 8, length: 8 }, Extent { offset: 0, length: 8 }])
    }

    fn write(config: Config, _: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        let (mut chunks, mut bodies) = (Vec::new(), Vec::new());
        let locks = matches!(config.does, Does::Lock | Does::HammerLocks);
        let lease = if locks { Some(lock::acquire("index", 60)?) } else { None };
        loop {
            let chunk = match delta.next() {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(_) if config.does == Does::IgnoreTheBreak => break,
                Err(error) => return Err(error),
            };
            match config.does {
                Does::Trap => panic!("as told"),
                Does::Spin => loop {
                    std::hint::spin_loop();
                },
                Does::Sleep => std::thread::sleep(std::time::Duration::from_secs(1_000_000)),
                Does::HoldChunks => chunks.push(chunk),
                Does::HoldBodies => bodies.push(chunk.encode(&Encoding::Identity)?.body()?),
                Does::HoldFiles | Does::HoldStreams => {
                    let folder = Folder::open(&config.folder)?;
                    folder.create(FILE)?;
                    let (mut files, mut streams) = (Vec::new(), Vec::new());
                    loop {
                        let file = folder.open_file(FILE)?;
                        match config.does {
                            Does::HoldStreams => streams.push(file.input(0)?),
                            _ => files.push(file),
                        }
                    }
                }
                Does::AnswerEarly => break,
                Does::Copy => {
                    let body = chunk.encode(&Encoding::Zstd)?.body()?;
                    while !body.read(1 << 20)?.is_empty() {}
                }
                Does::Leave => {
                    Folder::open(&config.folder)?.read(&config.path)?;
                }
                Does::Seal => {
                    let payload = chunk.encode(&Encoding::ZstdSealed(KEY.to_owned()))?;
                    let file = Folder::open(&config.folder)?.create(FILE)?;
                    file.splice_at(0, &payload.body()?, payload.length())?;
                    let name = seal::seal(KEY, b"a name")?;
                    assert_ne!(name, seal::seal(KEY, b"a name")?);
                    assert_eq!(seal::open(KEY, &name)?, b"a name");
                }
                Does::SealMuch => {
                    let much = vec![1; 8 << 20];
                    assert_eq!(seal::open(KEY, &seal::seal(KEY, &much)?)?, much);
                    assert!(seal::open(KEY, &vec![1; (8 << 20) + (1 << 20)]).is_err());
                    seal::seal(KEY, &vec![1; (8 << 20) + 1])?;
                }
                _ => {}
            }
        }
        Ok(match (config.does, lease) {
            (Does::HammerLocks, Some(lease)) => loop {
                lease.renew(60)?;
            },
            (Does::LongReceipt, _) => vec![0; (64 << 10) + 1],
            (_, Some(lease)) => {
                lease.renew(60)?;
                lease.epoch().to_string().into_bytes()
            }
            _ => Vec::new(),
        })
    }

    fn commit(config: Config, _: Draft, _: Vec<DiskReceipt>) -> Result<Point, Error> {
        match config.does {
            Does::Sleep => loop {
                std::thread::sleep(std::time::Duration::from_secs(1_000_000));
            },
            _ => Ok(point("another")),
        }
    }

    fn abort(_: Config, _: Draft) -> Result<(), Error> {
        Err(Error::unavailable("not now", 5))
    }

    fn read(config: Config, _: &str, _: &str, extents: Vec<Extent>, restore: &dyn Restore) -> Result<(), Error> {
        let mut pieces = Vec::new();
        for Extent { offset, length } in extents {
            match config.does {
                Does::HoldPieces => loop {
                    pieces.push(restore.put(offset, 1 << 20, &Encoding::Identity, None)?);
                },
                Does::Seal => {
                    let file = Folder::open(&config.folder)?.open_file(FILE)?;
                    let encoding = Encoding::ZstdSealed(KEY.to_owned());
                    restore.put_from(offset, &encoding, None, &file.input(0)?, file.size()?)?;
                }
                Does::Backwards => {
                    put(restore, offset + length, length)?;
                    put(restore, offset, length)?;
                }
                Does::Damage => {
                    let output = restore.put(offset, length, &Encoding::Identity, Some(&[0; 32]))?;
                    output.write_all(&vec![1; length as usize])?;
                    let error = restore.finish(output).expect_err("another digest");
                    assert!(error.is_damaged());
                    return Err(error);
                }
                // More than was asked for.
                _ => put(restore, offset.saturating_sub(4), length + 8)?,
            }
        }
        Ok(())
    }

    fn verify(_: Config, _: &str, _: &dyn Restore) -> Result<Vec<Damage>, Error> {
        Ok(vec![Damage { disk: None, extent: Some(Extent { offset: u64::MAX, length: 5 }), message: String::new() }])
    }

    fn hold(_: Config, _: &str, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn delete(config: Config, _: &str) -> Result<(), Error> {
        if config.does == Does::Work {
            let folder = Folder::open(&config.folder)?;
            let acts: [&dyn Fn() -> Result<(), Error>; 4] = [
                &|| folder.create(FILE)?.write_at(0, &[1; 4096]),
                &|| folder.read(FILE).map(drop),
                &|| folder.list().map(drop),
                &|| folder.create("copy")?.splice_at(0, &folder.open_file(FILE)?.input(0)?, 4096),
            ];
            for act in acts {
                let begun = std::time::Instant::now();
                while begun.elapsed() < std::time::Duration::from_millis(500) {
                    act()?;
                }
            }
        }
        Ok(())
    }

    fn collect(_: Config, _: Vec<String>, _: bool) -> Result<Vec<Garbage>, Error> {
        Ok(Vec::new())
    }
}

fn put(restore: &dyn Restore, offset: u64, length: u64) -> Result<(), Error> {
    let output = restore.put(offset, length, &Encoding::Identity, None)?;
    output.write_all(&vec![7; length as usize])?;
    restore.finish(output)
}

fn point(id: &str) -> Point {
    Point {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: 0,
        disks: Vec::new(),
        held: false,
        damaged: None,
        extensions: Vec::new(),
    }
}

vmferry_plugin_api::export_target!(Guest);
