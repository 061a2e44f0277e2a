//! Names to addresses, a few at a time.
//!
//! The system's resolver blocks a thread and cannot be interrupted: a call that has run out of time leaves its lookup
//! behind, which goes on for as long as a name server keeps silent. So the permit belongs to the thread that asks, not
//! to the call that waits, and abandoned lookups count until they end.

use crate::limits::{ALL_LOOKUPS, LOOKUPS};
use crate::share::Share;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;

/// The lookups of one use of a plugin, which have a share of its tenant's, and these of the process's.
#[derive(Debug)]
pub(crate) struct Lookups {
    own: Arc<Semaphore>,
    share: Arc<Share>,
    all: Arc<Semaphore>,
}

impl Lookups {
    pub(crate) fn of(share: Arc<Share>) -> Self {
        static ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ALL_LOOKUPS)));
        Self::sharing(share, ALL.clone())
    }

    fn sharing(share: Arc<Share>, all: Arc<Semaphore>) -> Self {
        Self { own: Arc::new(Semaphore::new(LOOKUPS)), share, all }
    }

    /// The addresses of a host. Waits for its turn, which the deadline of the call bounds.
    pub(crate) async fn addresses(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let name = name.to_owned();
        self.ask(move || (name, port).to_socket_addrs().map(Iterator::collect)).await
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        // Its own first, then its tenant's, or one whose lookups hang would take the others' share only to wait with it.
        let own = self.own.clone().acquire_owned().await.map_err(io::Error::other)?;
        let tenants = self.share.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let all = self.all.clone().acquire_owned().await.map_err(io::Error::other)?;
        let share = self.share.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _held = (own, tenants, share, all);
            question()
        });
        asked.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TENANT_LOOKUPS;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Waker};

    /// A name server that keeps silent until it is dropped.
    struct Silence {
        end: Option<mpsc::Sender<()>>,
        silence: Arc<std::sync::Mutex<mpsc::Receiver<()>>>,
    }

    impl Silence {
        fn begin() -> Self {
            let (end, silence) = mpsc::channel();
            Self { end: Some(end), silence: Arc::new(std::sync::Mutex::new(silence)) }
        }

        /// Asks, and gives up before there is an answer.
        fn ask_and_leave(&self, lookups: &Lookups) {
            let silence = self.silence.clone();
            let asked = lookups.ask(move || {
                let _ = silence.lock().expect("unpoisoned").recv();
                Ok(())
            });
            assert!(pin!(asked).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }

        fn end(&mut self) {
            self.end = None;
        }
    }

    impl Drop for Silence {
        fn drop(&mut self) {
            self.end();
        }
    }

    fn waits(lookups: &Lookups) -> bool {
        [&lookups.own, &lookups.share.lookups, &lookups.all].iter().any(|some| some.available_permits() == 0)
    }

    #[tokio::test]
    async fn an_abandoned_lookup_counts_until_it_ends() {
        let lookups = Lookups::sharing(Arc::default(), Arc::new(Semaphore::new(ALL_LOOKUPS)));
        let mut silence = Silence::begin();
        for _ in 0..LOOKUPS {
            assert!(!waits(&lookups));
            silence.ask_and_leave(&lookups);
        }
        assert!(waits(&lookups), "the threads are still busy, though nobody waits for them");
        silence.end();
        assert_eq!(lookups.ask(|| Ok(7)).await.expect("a turn"), 7);
    }

    #[tokio::test]
    async fn all_uses_together_have_a_bound_of_their_own() {
        let all = Arc::new(Semaphore::new(LOOKUPS + 1));
        let [one, other] = [(); 2].map(|()| Lookups::sharing(Arc::default(), all.clone()));
        let mut silence = Silence::begin();
        for _ in 0..LOOKUPS {
            silence.ask_and_leave(&one);
        }
        assert!(!waits(&other), "one use cannot take everything");
        silence.ask_and_leave(&other);
        assert!(waits(&other));
        silence.end();
        assert_eq!(other.ask(|| Ok(7)).await.expect("a turn"), 7);
    }

    #[tokio::test]
    async fn one_tenant_cannot_take_everything_with_however_many_plugins() {
        let all = Arc::new(Semaphore::new(ALL_LOOKUPS));
        let (tenant, other) = (Arc::<Share>::default(), Lookups::sharing(Arc::default(), all.clone()));
        let silence = Silence::begin();
        for _ in 0..TENANT_LOOKUPS / LOOKUPS {
            let lookups = Lookups::sharing(tenant.clone(), all.clone());
            (0..LOOKUPS).for_each(|_| silence.ask_and_leave(&lookups));
        }
        assert!(waits(&Lookups::sharing(tenant, all)));
        assert!(!waits(&other));
        assert_eq!(other.ask(|| Ok(7)).await.expect("a turn"), 7);
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let addresses = Lookups::of(Arc::default()).addresses("localhost", 80).await.expect("known");
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        assert!(!addresses.is_empty());
    }
}
