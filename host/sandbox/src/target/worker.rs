//! A thread for one call of a target.
//!
//! A target's host functions block: files are read and written in place, bytes are compressed and digested. On a thread of its own
//! a call holds up nobody, needs no hand-over per file operation, and can be left behind when a file system does not answer.

use std::convert::Infallible;
use std::io;
use tokio::sync::oneshot;

/// Runs a future on a thread of its own, with a runtime of its own. Dropping the future that waits for it ends it at its next
/// turn, which for a guest that computes is within a tick. The error is the system's, which gives no thread.
pub(crate) async fn on_own_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let (_wanted, unwanted) = oneshot::channel::<Infallible>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("plugin-target".to_owned()).spawn(move || {
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = unwanted => None,
                done = work => Some(done),
            }
        });
        // Whoever waits may be gone, and so may a name server that a thread of the runtime still waits for.
        if let Some(done) = done {
            let _ = answer.send(done);
        }
        runtime.shutdown_background();
    })?;
    answered.await.map_err(|_| io::Error::other("the thread of the call panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_answered_and_ends_when_nobody_waits_for_it_any_more() {
        assert_eq!(on_own_thread(async { 5 }).await.expect("a thread"), 5);
        let (alive, gone) = oneshot::channel::<()>();
        let (started, begun) = oneshot::channel();
        let work = on_own_thread(async move {
            let _alive = alive;
            let _ = started.send(());
            std::future::pending::<()>().await;
        });
        tokio::select! { _ = work => panic!("it never ends"), begun = begun => begun.expect("started") }
        assert!(gone.await.is_err(), "dropped with the one who waited");
    }
}
