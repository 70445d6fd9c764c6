//! What must hold, whatever happens. Nothing here knows how the product does it.

pub mod history;
pub mod keys;
pub mod ledger;
pub mod model;
