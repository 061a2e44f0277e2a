//! Notifiers: tell people and programs what happened.

use serde::de::DeserializeOwned;

pub use crate::bindings::notifier::exports::vmferry::plugin::notify::{Event, Severity, Verdict};
pub use crate::{Description, Error, ErrorCode, Timestamp, description};

/// A notifier. Each event meets a fresh instance; what must survive goes into [`store`](crate::store).
pub trait Notifier {
    /// What an operator writes under `with`.
    type Config: DeserializeOwned;

    /// Who the plugin is; see [`description!`](crate::description).
    fn describe() -> Description;

    /// Checks what the type of the settings cannot express.
    fn check(config: &Self::Config) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// Handles one event. An error with `retry_after` asks the host to send the event again later.
    fn handle(config: Self::Config, event: Event) -> Result<Verdict, Error>;
}

/// Makes the crate a component with this notifier. Natively it expands to a check of the type alone.
#[macro_export]
macro_rules! export_notifier {
    ($plugin:ty) => {
        const _: () = {
            type Exported = $crate::notifier::Component<$plugin>;
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::notifier::export_component!(Exported with_types_in $crate::bindings::notifier);
            #[cfg(not(target_arch = "wasm32"))]
            const fn is_a_notifier<T: $crate::notifier::__Guest>() {}
            #[cfg(not(target_arch = "wasm32"))]
            is_a_notifier::<Exported>();
        };
    };
}

#[doc(hidden)]
pub use crate::bindings::notifier::exports::vmferry::plugin::notify::Guest as __Guest;

/// Between the generated exports and the author's trait.
#[doc(hidden)]
pub struct Component<T>(std::marker::PhantomData<T>);

impl<T: Notifier + 'static> __Guest for Component<T> {
    fn describe() -> Result<Description, Error> {
        Ok(T::describe())
    }

    fn validate_config(config: String) -> Result<(), Error> {
        T::check(&crate::parse_config(&config)?)
    }

    fn handle(config: String, event: Event) -> Result<Verdict, Error> {
        T::handle(crate::parse_config(&config)?, event)
    }
}
