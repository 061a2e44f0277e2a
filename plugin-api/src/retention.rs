//! Retention rules: which recovery points stay.

use serde::de::DeserializeOwned;

pub use crate::bindings::retention::exports::vmferry::plugin::retain::{Judgement, Point};
pub use crate::{Description, Error, ErrorCode, Timestamp, description};

/// A retention rule. The decision is pure: a call sees its arguments and nothing else.
pub trait Retention {
    /// What an operator writes under `with`.
    type Config: DeserializeOwned;

    /// Who the plugin is; see [`description!`](crate::description).
    fn describe() -> Description;

    /// Checks what the type of the settings cannot express.
    fn check(config: &Self::Config) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// One judgement per point, in the order of `points`, which come oldest first.
    fn select(config: Self::Config, points: Vec<Point>, now: Timestamp) -> Result<Vec<Judgement>, Error>;
}

/// Makes the crate a component with this retention rule. Natively it expands to a check of the type alone.
#[macro_export]
macro_rules! export_retention {
    ($plugin:ty) => {
        const _: () = {
            type Exported = $crate::retention::Component<$plugin>;
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::retention::export_component!(Exported with_types_in $crate::bindings::retention);
            #[cfg(not(target_arch = "wasm32"))]
            const fn is_a_retention_rule<T: $crate::retention::__Guest>() {}
            #[cfg(not(target_arch = "wasm32"))]
            is_a_retention_rule::<Exported>();
        };
    };
}

#[doc(hidden)]
pub use crate::bindings::retention::exports::vmferry::plugin::retain::Guest as __Guest;

/// Between the generated exports and the author's trait.
#[doc(hidden)]
pub struct Component<T>(std::marker::PhantomData<T>);

impl<T: Retention + 'static> __Guest for Component<T> {
    fn describe() -> Result<Description, Error> {
        Ok(T::describe())
    }

    fn validate_config(config: String) -> Result<(), Error> {
        T::check(&crate::parse_config(&config)?)
    }

    fn select(config: String, points: Vec<Point>, now: Timestamp) -> Result<Vec<Judgement>, Error> {
        T::select(crate::parse_config(&config)?, points, now)
    }
}
