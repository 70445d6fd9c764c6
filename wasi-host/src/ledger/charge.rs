//! Something held on an account, until it is dropped.

use std::sync::Arc;

use super::{Account, Holding, Refused};

/// So much of something, given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    holding: Holding,
    amount: u64,
}

impl Charge {
    /// A charge that grows.
    pub(crate) fn nothing(account: &Arc<Account>, holding: Holding) -> Charge {
        Charge { account: Arc::clone(account), holding, amount: 0 }
    }

    /// How much it is.
    pub(crate) fn amount(&self) -> u64 {
        self.amount
    }

    /// On whose account.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// So much more. A refusal changes nothing.
    pub(crate) fn grow(&mut self, more: u64) -> Result<(), Refused> {
        self.try_grow(more).inspect_err(|refused| self.account.note(*refused))
    }

    /// The same for one who does without where it is refused: nobody is told of that.
    pub(crate) fn try_grow(&mut self, more: u64) -> Result<(), Refused> {
        self.account.take(self.holding, more)?;
        self.amount += more;
        Ok(())
    }

    /// So much less, at most all.
    pub(crate) fn shrink(&mut self, less: u64) {
        let less = less.min(self.amount);
        self.amount -= less;
        if less > 0 {
            self.account.give_back(self.holding, less);
        }
    }

    /// As much as this. Less is never refused.
    pub(crate) fn set(&mut self, amount: u64) -> Result<(), Refused> {
        self.try_set(amount).inspect_err(|refused| self.account.note(*refused))
    }

    /// The same for one who does without where it is refused.
    pub(crate) fn try_set(&mut self, amount: u64) -> Result<(), Refused> {
        match amount.checked_sub(self.amount) {
            Some(0) => Ok(()),
            Some(more) => self.try_grow(more),
            None => {
                self.shrink(self.amount - amount);
                Ok(())
            }
        }
    }

    /// As much as this, whether it may be or not: it is there already. Other charges are refused for it.
    pub(crate) fn set_held(&mut self, amount: u64) {
        match amount.checked_sub(self.amount) {
            Some(0) => {}
            Some(more) => {
                self.account.burden(self.holding, more);
                self.amount = amount;
            }
            None => self.shrink(self.amount - amount),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}
