//! Schedulers: when a job runs, and whether a plan may be carried out.

use serde::de::DeserializeOwned;

pub use crate::bindings::scheduler::exports::vmferry::plugin::schedule::{
    Approval, Deferral, DiskPlan, Due, ExpectedFrom, FullReason, Outcome, Plan, State, TargetPlan, TransferKind, VmPlan,
};
pub use crate::{Description, Error, ErrorCode, Timestamp, description};

/// A scheduler. Both decisions are pure: a call sees its arguments and nothing else.
pub trait Scheduler {
    /// What an operator writes under `with`.
    type Config: DeserializeOwned;

    /// Who the plugin is; see [`description!`](crate::description).
    fn describe() -> Description;

    /// Checks what the type of the settings cannot express.
    fn check(config: &Self::Config) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// When the job should start next.
    fn next_run(config: Self::Config, state: State, now: Timestamp) -> Result<Due, Error>;

    /// Whether this plan may go ahead. Without an own answer every plan may.
    fn approve(config: Self::Config, plan: Plan, now: Timestamp) -> Result<Approval, Error> {
        let _ = (config, plan, now);
        Ok(Approval::Approved)
    }
}

/// Makes the crate a component with this scheduler. Natively it expands to a check of the type alone.
#[macro_export]
macro_rules! export_scheduler {
    ($plugin:ty) => {
        const _: () = {
            type Exported = $crate::scheduler::Component<$plugin>;
            #[cfg(target_arch = "wasm32")]
    $crate::bindings::scheduler::export_component!(Exported with_types_in $crate::bindings::scheduler);
            #[cfg(not(target_arch = "wasm32"))]
            const fn is_a_scheduler<T: $crate::scheduler::__Guest>() {}
            #[cfg(not(target_arch = "wasm32"))]
            is_a_scheduler::<Exported>();
        };
    };
}

#[doc(hidden)]
pub use crate::bindings::scheduler::exports::vmferry::plugin::schedule::Guest as __Guest;

/// Between the generated exports and the author's trait.
#[doc(hidden)]
pub struct Component<T>(std::marker::PhantomData<T>);

impl<T: Scheduler + 'static> __Guest for Component<T> {
    fn describe() -> Result<Description, Error> {
        Ok(T::describe())
    }

    fn validate_config(config: String) -> Result<(), Error> {
        T::check(&crate::parse_config(&config)?)
    }

    fn next_run(config: String, state: State, now: Timestamp) -> Result<Due, Error> {
        T::next_run(crate::parse_config(&config)?, state, now)
    }

    fn approve(config: String, plan: Plan, now: Timestamp) -> Result<Approval, Error> {
        T::approve(crate::parse_config(&config)?, plan, now)
    }
}
