//! A session's place in one election, and the order of what is said about it.
//!
//! A resignation that is delayed on its way and arrives after a new campaign of the same session
//! was granted must not end a lease that its holder believes in (S5). One of a lease names its
//! epoch, and the cluster refuses it then. One of a place in the queue has none to name. So
//! campaigns and resignations of one seat share one lane as well: once a later one was applied, an
//! earlier one is refused for as long as the cluster remembers the lane.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use regent_core::id::ElectionName;

use super::lane::Lane;

/// One seat.
#[derive(Debug)]
pub(super) struct Seat {
    /// Held during each campaign or resignation, so that they reach the cluster one by one.
    pub lane: tokio::sync::Mutex<Lane>,
    taken: AtomicBool,
    /// Rises with each campaign: a resignation in the background that a new campaign has overtaken
    /// must not be sent any more.
    generation: AtomicU64,
}

/// The seats of a session; one per election it ever campaigned in.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: Mutex<HashMap<ElectionName, Arc<Seat>>>,
}

impl Seats {
    /// Takes the seat in `election`; `None` while a campaign or lease of this session has it.
    pub fn take(&self, election: &ElectionName) -> Option<Arc<Seat>> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let seat = seats.entry(election.clone()).or_insert_with(|| {
            Arc::new(Seat {
                lane: tokio::sync::Mutex::new(Lane::fresh()),
                taken: AtomicBool::new(false),
                generation: AtomicU64::new(0),
            })
        });
        if seat.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        seat.generation.fetch_add(1, Ordering::AcqRel);
        Some(Arc::clone(seat))
    }
}

impl Seat {
    /// Frees the seat; returns the generation that a resignation of it must still find.
    pub fn free(&self) -> u64 {
        let generation = self.generation();
        self.taken.store(false, Ordering::Release);
        generation
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
