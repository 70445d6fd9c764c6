//! Computes pi to N decimal places (1,000 by default), prints it and exits with 0.
//!
//! Uses the unbounded spigot in its bounded form (Rabinowitz and Wagon, "A Spigot Algorithm for the Digits of Pi",
//! American Mathematical Monthly 102, 1995).

fn main() {
    let digits: usize =
        std::env::args().nth(1).map_or(1000, |n| n.parse().expect("the first argument is a number"));
    println!("{}", pi(digits));
}

fn pi(digits: usize) -> String {
    let mut boxes = vec![2u64; digits * 10 / 3 + 2];
    let mut text = String::with_capacity(digits + 8);
    let mut held: Option<u64> = None;
    let mut nines = 0;
    while text.len() < digits + 2 {
        let mut carry = 0;
        for index in (1..boxes.len()).rev() {
            let value = boxes[index] * 10 + carry;
            let divisor = 2 * index as u64 + 1;
            boxes[index] = value % divisor;
            carry = value / divisor * index as u64;
        }
        let value = boxes[0] * 10 + carry;
        boxes[0] = value % 10;
        let digit = value / 10;
        if digit == 9 {
            nines += 1;
            continue;
        }
        let (bump, filler) = if digit == 10 { (1, '0') } else { (0, '9') };
        if let Some(previous) = held {
            text.push(char::from(b'0' + (previous + bump) as u8));
        }
        text.extend(std::iter::repeat_n(filler, nines));
        nines = 0;
        held = Some(if digit == 10 { 0 } else { digit });
    }
    format!("{}.{}", &text[..1], &text[1..=digits])
}
