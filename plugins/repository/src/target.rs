//! A target made of a repository: whatever place the objects are in, the calls are the same.

use crate::repository::is_chunk_size;
use crate::{DEFAULT_CHUNK_SIZE, Repository, Settings, Storage};
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::time::SystemTime;
use vmferry_plugin_api::target::*;
use vmferry_plugin_api::{Size, Span};

/// A place for a repository, and what an operator writes of it.
///
/// ```ignore
/// vmferry_plugin_api::export_target!(vmferry_repository::target::Kept<InFolder>);
/// ```
pub trait Place {
    /// What an operator writes under `with`.
    type Config: DeserializeOwned;
    /// Keeps the objects.
    type Store: Storage;

    /// Who the plugin is; see [`description!`](vmferry_plugin_api::description).
    fn describe() -> Description;

    /// Checks what the type of the settings cannot express, apart from [`choices`](Self::choices).
    fn check(config: &Self::Config) -> Result<(), Error>;

    /// What the operator decided about the repository.
    fn choices(config: &Self::Config) -> Choices;

    /// What an operator does who meant a repository that is there and reads that there is none.
    const FIND_IT: &str;

    /// The place in an operator's words.
    fn name(config: &Self::Config) -> String;

    /// The place.
    fn store(config: &Self::Config) -> Result<Self::Store, Error>;

    /// Bytes that nobody can guess.
    fn secret() -> Result<[u8; 32], Error>;
}

/// Settings that every plugin with a repository has.
#[derive(Clone, Debug)]
pub struct Choices {
    /// `create`: whether a repository is made where none is.
    pub create: bool,
    /// `key`: name of the host's key that everything is encrypted with.
    pub key: Option<String>,
    /// `chunk_size`: chosen when the repository is made.
    pub chunk_size: Option<Size>,
    /// `compress`: whether chunks are compressed.
    pub compress: bool,
    /// `pack_size`: bytes of chunks that go into one object.
    pub pack_size: Option<Size>,
    /// `grace`: how long what nobody needs is left alone before it is removed.
    pub grace: Option<Span>,
}

/// Of payload the host holds 64 MiB at most, and a pack is held until it is written.
const PACK_SIZES: std::ops::RangeInclusive<u64> = 4 << 20..=48 << 20;

impl Choices {
    /// The same as a repository takes them, if they are possible.
    pub fn settings(&self) -> Result<Settings, Error> {
        let default = Settings::default();
        let chunk_size = match self.chunk_size.map(|size| (size, u32::try_from(size.bytes()))) {
            None => None,
            Some((_, Ok(size))) if is_chunk_size(size) => Some(size),
            Some((size, _)) => {
                return Err(Error::config(format!(
                    "`chunk_size`: `{size}` is not 64, 128, 256 or 512 KiB, or 1 or 2 MiB"
                )));
            }
        };
        let pack_size = self.pack_size.map_or(default.pack_size, Size::bytes);
        if !PACK_SIZES.contains(&pack_size) {
            return Err(Error::config("`pack_size`: write a size from \"4 MiB\" to \"48 MiB\""));
        }
        let grace = self.grace.map_or(default.grace, |grace| grace.seconds().unsigned_abs());
        Ok(Settings { key: self.key.clone(), chunk_size, compress: self.compress, pack_size, grace })
    }
}

/// The target that keeps its points in a repository at `P`.
pub struct Kept<P>(PhantomData<P>);

/// When to ask again for a repository that was not there: an operator has to do something.
const RETRY_AFTER: u64 = 300;

/// Acts on the repository that is there. `None` when there is none yet and the operator wants one. An empty place where none is to be made
/// may be a share that is not mounted, and is not to be taken for a repository without points.
fn existing<P: Place, T>(
    config: &P::Config,
    act: impl FnOnce(&Repository<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let store = P::store(config)?;
    let choices = P::choices(config);
    match Repository::open(&store, choices.settings()?, &now)? {
        Some(repository) => act(&repository).map(Some),
        None if choices.create => Ok(None),
        None => Err(absent::<P>(config)),
    }
}

/// The same, where a point is named: it has to be there.
fn known<P: Place, T>(
    config: &P::Config,
    point: &str,
    act: impl FnOnce(&Repository<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let none = || Error::not_found(format!("the recovery point {point} is not there, nor is any repository"));
    existing::<P, T>(config, act)?.ok_or_else(none)
}

/// What an operator reads where no repository is and none is to be made.
fn absent<P: Place>(config: &P::Config) -> Error {
    let (name, find_it) = (P::name(config), P::FIND_IT);
    Error::unavailable(
        format!(
            "{name} has no repository; if it should have one, {find_it}; if it is new, set `create = true` for the first run"
        ),
        RETRY_AFTER,
    )
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl<P: Place> Target for Kept<P> {
    type Config = P::Config;

    fn describe() -> Description {
        P::describe()
    }

    fn check(config: &P::Config) -> Result<(), Error> {
        P::check(config)?;
        P::choices(config).settings().map(drop)
    }

    fn data_shape(config: P::Config) -> Result<Shape, Error> {
        let (store, settings) = (P::store(&config)?, P::choices(&config).settings()?);
        let chosen = settings.chunk_size;
        // Without a repository every other call fails, which costs this target alone; to fail here would cost the whole job.
        let made = Repository::open(&store, settings, &now)?.map(|made| made.chunk_size());
        let chunk_size = made.or(chosen).unwrap_or(DEFAULT_CHUNK_SIZE);
        Ok(Shape { chunk_size, only_newest: false, extensions: Vec::new() })
    }

    fn points(config: P::Config, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        Ok(existing::<P, _>(&config, |repository| repository.points(vm))?.unwrap_or_default())
    }

    fn metadata(config: P::Config, point: &str) -> Result<String, Error> {
        known::<P, _>(&config, point, |repository| repository.metadata(point))
    }

    fn layout(config: P::Config, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        known::<P, _>(&config, point, |repository| repository.layout(point, disk, since))
    }

    fn write(config: P::Config, draft: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        let choices = P::choices(&config);
        if !choices.create {
            let written = existing::<P, _>(&config, |repository| repository.write(&draft, delta))?;
            return written.ok_or_else(|| absent::<P>(&config));
        }
        let store = P::store(&config)?;
        Repository::make(&store, choices.settings()?, &now, P::secret()?)?.write(&draft, delta)
    }

    fn commit(config: P::Config, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error> {
        let made = existing::<P, _>(&config, |repository| repository.commit(&draft, &receipts))?;
        made.ok_or_else(|| absent::<P>(&config))
    }

    fn abort(config: P::Config, draft: Draft) -> Result<(), Error> {
        existing::<P, _>(&config, |repository| repository.abort(&draft.id)).map(drop)
    }

    fn read(
        config: P::Config,
        point: &str,
        disk: &str,
        extents: Vec<Extent>,
        restore: &dyn Restore,
    ) -> Result<(), Error> {
        known::<P, _>(&config, point, |repository| repository.read(point, disk, &extents, restore))
    }

    fn verify(config: P::Config, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        known::<P, _>(&config, point, |repository| repository.verify(point, check))
    }

    fn hold(config: P::Config, point: &str, held: bool) -> Result<(), Error> {
        known::<P, _>(&config, point, |repository| repository.hold(point, held))
    }

    fn delete(config: P::Config, point: &str) -> Result<(), Error> {
        existing::<P, _>(&config, |repository| repository.delete(point)).map(drop)
    }

    fn collect(config: P::Config, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error> {
        Ok(existing::<P, _>(&config, |repository| repository.collect(&drafts, apply))?.unwrap_or_default())
    }
}
