//! Amounts of resources: what nodes have and pods ask for.

use std::{collections::BTreeMap, fmt};

use coracle_objects::Quantity;
use serde::{Deserialize, Deserializer, de};

/// A quantity in thousandths, as read from JSON (a string, or a bare number).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount(i128);

impl Amount {
    /// Rounded up to a thousandth and clamped.
    pub fn milli(self) -> i64 {
        self.0.clamp(0, i64::MAX as i128) as i64
    }

    /// Rounded up to whole units and clamped.
    pub fn units(self) -> i64 {
        ((self.0 + 999).div_euclid(1000)).clamp(0, i64::MAX as i128) as i64
    }
}

/// Amounts of each resource. Sums saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    /// Places for pods.
    pub pods: i64,
    /// All other resources, in whole units: ephemeral-storage and extended ones. Zero amounts are left out.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list. Its `pods` is for the caller: a pod takes one place whatever it lists.
    pub fn of(amounts: &BTreeMap<String, Amount>) -> Self {
        let mut resources = Self::default();
        for (name, amount) in amounts {
            match name.as_str() {
                "cpu" => resources.cpu_milli = amount.milli(),
                "memory" => resources.memory_bytes = amount.units(),
                "pods" => {}
                _ if amount.units() > 0 => {
                    resources.others.insert(name.clone(), amount.units());
                }
                _ => {}
            }
        }
        resources
    }

    pub fn add(&mut self, more: &Self) {
        self.cpu_milli = self.cpu_milli.saturating_add(more.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_add(more.memory_bytes);
        self.pods = self.pods.saturating_add(more.pods);
        for (name, amount) in &more.others {
            let sum = self.others.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub fn remove(&mut self, less: &Self) {
        self.cpu_milli = self.cpu_milli.saturating_sub(less.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(less.memory_bytes);
        self.pods = self.pods.saturating_sub(less.pods);
        for (name, amount) in &less.others {
            if let Some(sum) = self.others.get_mut(name) {
                *sum = sum.saturating_sub(*amount);
            }
        }
    }

    /// The larger of both, resource by resource.
    pub fn raise_to(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.pods = self.pods.max(other.pods);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Amount, E> {
                let quantity: Quantity = text.parse().map_err(|_| E::custom("no quantity"))?;
                Ok(Amount(quantity.milli()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Amount, E> {
                Ok(Amount(number as i128 * 1000))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Amount, E> {
                Ok(Amount(number as i128 * 1000))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Amount, E> {
                Ok(Amount((number * 1000.0).ceil() as i128))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_from_strings_and_numbers_and_rounded_up() {
        let read: BTreeMap<String, Amount> =
            serde_json::from_str(r#"{"cpu":"250m","memory":"1Gi","example.com/gpu":2,"odd":"1500m"}"#)
                .unwrap();
        let resources = Resources::of(&read);
        assert_eq!(resources.cpu_milli, 250);
        assert_eq!(resources.memory_bytes, 1 << 30);
        assert_eq!(resources.others["example.com/gpu"], 2);
        assert_eq!(resources.others["odd"], 2);
        assert!(serde_json::from_str::<Amount>(r#""much""#).is_err());
    }
}
