//! Whether a started guest came up, as far as its pool is told: by events, and what counts is a pure function.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vmferry_xapi::records::{PowerState, Vm, VmGuestMetrics};
use vmferry_xapi::{Error, Event, Ref, Session};

/// How long to wait for a guest, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestWait {
    /// How long.
    pub patience: Duration,
    /// What makes it count as up.
    pub check: GuestCheck,
}

/// What makes a guest count as up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestCheck {
    /// Its agent said anything.
    Reports,
    /// Its agent told an address, or that its drivers run.
    Metrics,
}

/// What became of a guest that was waited for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GuestReport {
    /// Whether it is up.
    pub up: bool,
    /// Why not, with the state it is in.
    pub error: Option<String>,
    /// The addresses that its agent told.
    pub addresses: Vec<String>,
    /// Whether its agent told that its drivers run.
    pub drivers: bool,
    /// The operating system that its agent told.
    pub os: Option<String>,
    /// How long it was waited for.
    pub seconds: f64,
}

/// Waits until the guest of a VM that was just started is up, has stopped, or took too long.
pub(crate) async fn wait(session: &Session, vm: &Ref<Vm>, wait: &GuestWait) -> GuestReport {
    let began = Instant::now();
    let mut seen = Seen::default();
    let followed = follow(session, vm, wait.patience, &mut seen, |seen| seen.is_settled(wait.check)).await;
    let error = match (seen.is_up(wait.check), followed) {
        (true, _) => None,
        (false, Ok(())) if seen.runs() => {
            Some(format!("the guest is not up after {:?}: {}", wait.patience, seen.state()))
        }
        (false, Ok(())) => Some(format!("the guest did not come up: {}", seen.state())),
        (false, Err(error)) => Some(format!("the pool did not tell how the guest is: {error}; {}", seen.state())),
    };
    GuestReport { up: error.is_none(), error, seconds: began.elapsed().as_secs_f64(), ..seen.report() }
}

/// Waits until no operation is under way on a VM, for so long at most; answers with its record.
pub(crate) async fn settled(session: &Session, vm: &Ref<Vm>, patience: Duration) -> Result<Vm, Error> {
    let quiet = |seen: &Seen| seen.vm.as_ref().is_none_or(|vm| vm.current_operations.is_empty());
    follow(session, vm, patience, &mut Seen::default(), quiet).await?;
    session.get_record(vm).await
}

/// Collects events about a VM and all guests until `enough`, or until the time is over.
async fn follow(
    session: &Session,
    vm: &Ref<Vm>,
    patience: Duration,
    seen: &mut Seen,
    enough: impl Fn(&Seen) -> bool + Send,
) -> Result<(), Error> {
    let began = Instant::now();
    // Whole classes: the record of the guest is not there yet, and every host can follow classes.
    let mut events = session.events(["vm", "vm_guest_metrics"]);
    loop {
        let left = patience.saturating_sub(began.elapsed());
        // The first batch tells of the present and comes at once, so there is a look whatever the patience is.
        for event in events.next(left).await? {
            seen.take(vm, &event);
        }
        if enough(seen) || left.is_zero() {
            return Ok(());
        }
    }
}

/// What events told.
#[derive(Debug, Default)]
struct Seen {
    vm: Option<Vm>,
    guests: BTreeMap<String, VmGuestMetrics>,
}

impl Seen {
    fn take(&mut self, vm: &Ref<Vm>, event: &Event) {
        if event.reference == vm.as_str() {
            self.vm = event.record::<Vm>().and_then(Result::ok).map(|(_, record)| record);
        } else if let Some(Ok((guest, record))) = event.record::<VmGuestMetrics>() {
            self.guests.insert(guest.as_str().to_owned(), record);
        }
    }

    fn guest(&self) -> Option<&VmGuestMetrics> {
        self.guests.get(self.vm.as_ref()?.guest_metrics.as_str())
    }

    fn runs(&self) -> bool {
        self.vm.as_ref().is_some_and(|vm| vm.power_state == PowerState::Running)
    }

    fn is_up(&self, check: GuestCheck) -> bool {
        let answers = |guest: &VmGuestMetrics| match check {
            GuestCheck::Reports => true,
            GuestCheck::Metrics => guest.pv_drivers_detected || guest.networks.values().any(|ip| !ip.is_empty()),
        };
        self.runs() && self.guest().is_some_and(answers)
    }

    /// Whether waiting longer changes nothing: it is up, or its VM does not run any more.
    fn is_settled(&self, check: GuestCheck) -> bool {
        self.is_up(check) || !self.runs()
    }

    fn state(&self) -> String {
        let Some(vm) = &self.vm else { return "its VM is gone".to_owned() };
        let guest = match self.guest() {
            None => "its agent has told nothing".to_owned(),
            Some(guest) if guest.networks.is_empty() && !guest.pv_drivers_detected => {
                "its agent told neither an address nor that its drivers run".to_owned()
            }
            Some(_) => "its agent has answered".to_owned(),
        };
        format!("its VM is {}, {guest}", vm.power_state)
    }

    fn report(&self) -> GuestReport {
        let Some(guest) = self.guest() else { return GuestReport::default() };
        GuestReport {
            addresses: guest.networks.values().filter(|ip| !ip.is_empty()).cloned().collect(),
            drivers: guest.pv_drivers_detected,
            os: guest.os_version.get("name").cloned(),
            ..GuestReport::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_up_when_its_agent_says_so_and_its_vm_runs() {
        let seen = |power_state: PowerState, guest: Option<VmGuestMetrics>| Seen {
            vm: Some(Vm { power_state, guest_metrics: Ref::new("metrics"), ..Vm::default() }),
            guests: guest.map(|guest| ("metrics".to_owned(), guest)).into_iter().collect(),
        };
        let silent = VmGuestMetrics::default();
        let drivers = VmGuestMetrics { pv_drivers_detected: true, ..silent.clone() };
        let address = VmGuestMetrics {
            networks: BTreeMap::from([("0/ip".to_owned(), "192.0.2.7".to_owned())]),
            ..silent.clone()
        };
        let check = |guest: Option<&VmGuestMetrics>, reports: bool, metrics: bool| {
            let seen = seen(PowerState::Running, guest.cloned());
            assert_eq!(
                (seen.is_up(GuestCheck::Reports), seen.is_up(GuestCheck::Metrics)),
                (reports, metrics),
                "{guest:?}"
            );
        };
        check(None, false, false);
        check(Some(&silent), true, false);
        check(Some(&drivers), true, true);
        check(Some(&address), true, true);
        let stopped = seen(PowerState::Halted, Some(drivers));
        assert!(!stopped.is_up(GuestCheck::Reports) && stopped.is_settled(GuestCheck::Reports));
        assert!(stopped.state().contains("Halted"), "{}", stopped.state());
        assert!(Seen::default().is_settled(GuestCheck::Reports), "a VM that is gone never comes up");
    }
}
