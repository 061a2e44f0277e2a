//! Targets: keep recovery points somewhere else than on a pool.
//!
//! Disk data passes by as handles ([`delta`](crate::delta)): a plugin says where it goes, and does not see it. A point comes into
//! being by one [`write`](Target::write) per disk and a [`commit`](Target::commit); nothing is kept in memory between calls.

use serde::de::DeserializeOwned;

pub use crate::bindings::target::exports::vmferry::plugin::replicate::{
    Damage, DiskReceipt, Draft, Extent, Garbage, Point, PointDisk, Shape,
};
pub use crate::delta::{Checksum, Chunk, Delta, Encoding, Info, Kind, Payload, Restore};
pub use crate::{Description, Error, ErrorCode, Timestamp, description};

/// A target. Each call meets a fresh instance.
pub trait Target {
    /// What an operator writes under `with`.
    type Config: DeserializeOwned;

    /// Who the plugin is; see [`description!`](crate::description).
    fn describe() -> Description;

    /// Checks what the type of the settings cannot express.
    fn check(config: &Self::Config) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// How the plugin wants its data under these settings.
    fn data_shape(config: Self::Config) -> Result<Shape, Error>;

    /// Committed points of one VM, of whichever job, oldest first; of all VMs when none is named.
    fn points(config: Self::Config, vm: Option<&str>) -> Result<Vec<Point>, Error>;

    /// What the draft of a point said in its `metadata`: a JSON object.
    fn metadata(config: Self::Config, point: &str) -> Result<String, Error>;

    /// The ranges of a disk that may hold something else than zeroes, ascending and apart from each other; with `since`, a
    /// point of the same disk, those that may differ from it.
    fn layout(config: Self::Config, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error>;

    /// Stores one disk's data, and answers what `commit` has to know: at most 64 KiB. Calls for several disks of one draft may
    /// run at the same time.
    fn write(config: Self::Config, draft: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error>;

    /// Makes the draft a point, which then survives a power failure. Called again with the same draft and receipts, it answers
    /// the same point.
    fn commit(config: Self::Config, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error>;

    /// Forgets a draft and what was stored for it alone. A draft never heard of is no error.
    fn abort(config: Self::Config, draft: Draft) -> Result<(), Error>;

    /// Reads these ranges of a disk back, in ascending order.
    fn read(
        config: Self::Config,
        point: &str,
        disk: &str,
        extents: Vec<Extent>,
        restore: &dyn Restore,
    ) -> Result<(), Error>;

    /// Checks that everything stored for a point is there and unchanged; an empty list means that it is. What is put into
    /// `check`, in any order, the host decodes, checks and throws away.
    fn verify(config: Self::Config, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error>;

    /// Has an operator's word that a point must stay, or need not any more, kept with it.
    fn hold(config: Self::Config, point: &str, held: bool) -> Result<(), Error>;

    /// Removes a point, held or not. Points that were based on it stay whole. One never heard of is no error.
    fn delete(config: Self::Config, point: &str) -> Result<(), Error>;

    /// Finds what belongs to no point nor to one of these drafts, and removes it if `apply` says so.
    fn collect(config: Self::Config, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error>;
}

/// Makes the crate a component with this target. Natively it expands to a check of the type alone.
#[macro_export]
macro_rules! export_target {
    ($plugin:ty) => {
        const _: () = {
            type Exported = $crate::target::Component<$plugin>;
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::target::export_component!(Exported with_types_in $crate::bindings::target);
            #[cfg(not(target_arch = "wasm32"))]
            const fn is_a_target<T: $crate::target::__Guest>() {}
            #[cfg(not(target_arch = "wasm32"))]
            is_a_target::<Exported>();
        };
    };
}

#[doc(hidden)]
pub use crate::bindings::target::exports::vmferry::plugin::replicate::Guest as __Guest;

use crate::bindings::target::vmferry::plugin::delta as wit;
use crate::parse_config as parse;

/// Between the generated exports and the author's trait.
#[doc(hidden)]
pub struct Component<T>(std::marker::PhantomData<T>);

impl<T: Target + 'static> __Guest for Component<T> {
    fn describe() -> Result<Description, Error> {
        Ok(T::describe())
    }

    fn validate_config(config: String) -> Result<(), Error> {
        T::check(&parse(&config)?)
    }

    fn data_shape(config: String) -> Result<Shape, Error> {
        T::data_shape(parse(&config)?)
    }

    fn points(config: String, vm: Option<String>) -> Result<Vec<Point>, Error> {
        T::points(parse(&config)?, vm.as_deref())
    }

    fn metadata(config: String, point: String) -> Result<String, Error> {
        T::metadata(parse(&config)?, &point)
    }

    fn layout(config: String, point: String, disk: String, since: Option<String>) -> Result<Vec<Extent>, Error> {
        T::layout(parse(&config)?, &point, &disk, since.as_deref())
    }

    fn write(config: String, draft: Draft, delta: &wit::Delta) -> Result<Vec<u8>, Error> {
        T::write(parse(&config)?, draft, delta)
    }

    fn commit(config: String, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error> {
        T::commit(parse(&config)?, draft, receipts)
    }

    fn abort(config: String, draft: Draft) -> Result<(), Error> {
        T::abort(parse(&config)?, draft)
    }

    fn read(
        config: String,
        point: String,
        disk: String,
        extents: Vec<Extent>,
        restore: &wit::Restore,
    ) -> Result<(), Error> {
        T::read(parse(&config)?, &point, &disk, extents, restore)
    }

    fn verify(config: String, point: String, check: &wit::Restore) -> Result<Vec<Damage>, Error> {
        T::verify(parse(&config)?, &point, check)
    }

    fn hold(config: String, point: String, held: bool) -> Result<(), Error> {
        T::hold(parse(&config)?, &point, held)
    }

    fn delete(config: String, point: String) -> Result<(), Error> {
        T::delete(parse(&config)?, &point)
    }

    fn collect(config: String, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error> {
        T::collect(parse(&config)?, drafts, apply)
    }
}
