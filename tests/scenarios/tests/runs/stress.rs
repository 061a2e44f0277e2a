//! Runs against pools that have a bad day: replies that get lost, a master that changes, tasks that vanish, queues that are full.

mod lost_replies;
