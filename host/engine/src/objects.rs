//! Small acts on XAPI objects that several phases need.

use crate::error::RunError;
use crate::keys::Keys;
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};
use vmferry_xapi::records::{StringMap, Vbd, Vdi};
use vmferry_xapi::{ApiError, Error, Record, Ref, Session, Value, params};

/// How long an operation of which nobody tells the end may go on before it is given up.
const LONGEST_SETTLING: Duration = Duration::from_secs(300);

/// When it is first looked for: XAPI shows an operation some moments after it took the call.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Sets and removes keys of an object in one write. For objects that nobody else writes to: snapshots, replicas and
/// their disks. (A source VM's keys are set one by one, since its owner may write at the same time.)
pub(crate) async fn set_keys<T: Record>(
    session: &Session,
    object: &Ref<T>,
    set: &[(&str, String)],
    remove: &[&str],
) -> Result<(), Error> {
    let mut keys: Keys = session.call(&format!("{}.get_other_config", T::CLASS), params![object]).await?;
    for key in remove {
        keys.remove(*key);
    }
    keys.extend(set.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    match replace_keys(session, object, &keys).await {
        // Somebody gave it more keys than a call can carry: what is to be set is small all the same.
        Err(Error::Unsendable { .. }) => {
            for key in remove {
                session.remove_from_other_config(object, key).await?;
            }
            for (key, value) in set {
                session.set_other_config_key(object, key, value).await?;
            }
            Ok(())
        }
        done => done,
    }
}

/// Replaces all keys of an object in one write.
pub(crate) async fn replace_keys<T: Record>(session: &Session, object: &Ref<T>, keys: &Keys) -> Result<(), Error> {
    session.call(&format!("{}.set_other_config", T::CLASS), params![object, keys]).await
}

/// Makes something out of `object` by the operation `name`, as a task. Where it stays open how that ended, because the
/// reply or the task was lost, the error comes once the object shows no such operation any more (after some minutes at the
/// latest): who looks then finds what was made, and nothing appears behind his back.
pub(crate) async fn make_from<M: DeserializeOwned, T: Record>(
    session: &Session,
    object: &Ref<T>,
    name: &str,
    arguments: Vec<Value>,
) -> Result<M, Error> {
    let made = session.call_async(&format!("{}.{name}", T::CLASS), arguments).await;
    if made.as_ref().is_err_and(Error::leaves_outcome_open) {
        let begun = Instant::now();
        let mut pause = FIRST_LOOK;
        while begun.elapsed() < LONGEST_SETTLING {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            let operations: Result<StringMap, Error> =
                session.call(&format!("{}.get_current_operations", T::CLASS), params![object]).await;
            match operations {
                Ok(operations) if operations.values().any(|operation| operation == name) => {}
                // A pool that cannot be reached tells nothing, and what this run leaves there is the next one's anyway.
                Ok(_) | Err(Error::Transport { .. } | Error::Timeout { .. }) => break,
                Err(_) => {}
            }
        }
    }
    made
}

/// Waits until XAPI has taken a disk off the control domain after a stream: an import that starts earlier finds it attached
/// for reading. After about half a minute the import itself may tell.
pub(crate) async fn wait_until_detached(session: &Session, disk: &Ref<Vdi>) -> Result<(), Error> {
    let mut pause = Duration::from_millis(20);
    for _ in 0..10 {
        let attachments: Vec<Ref<Vbd>> = session.call("VDI.get_VBDs", params![disk]).await?;
        let mut attached = false;
        for vbd in &attachments {
            attached |= match session.call::<bool>("VBD.get_currently_attached", params![vbd]).await {
                Err(Error::Api(ApiError::HandleInvalid { .. })) => false,
                other => other?,
            };
        }
        if !attached {
            break;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(())
}

/// Destroys a disk; one that is gone already is no error. XAPI keeps a disk attached to the control domain for a
/// while after a broken stream, so `VDI_IN_USE` is asked again, with growing pauses, for about half a minute.
pub(crate) async fn destroy_disk(session: &Session, disk: &Ref<Vdi>) -> Result<(), RunError> {
    let mut pause = Duration::from_millis(100);
    for _ in 0..8 {
        match session.call_async::<()>("VDI.destroy", params![disk]).await {
            Err(Error::Api(ApiError::VdiInUse { .. } | ApiError::OtherOperationInProgress { .. })) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(Error::Api(ApiError::HandleInvalid { .. })) => return Ok(()),
            other => return Ok(other?),
        }
    }
    Ok(session.call_async::<()>("VDI.destroy", params![disk]).await?)
}
