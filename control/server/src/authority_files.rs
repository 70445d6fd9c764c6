//! The certificate authorities in a data dir.

use std::{fs, io};

use coracle_pki::{AUTHORITIES_FILE, Authorities};

use crate::{data_dir::DataDir, error::ServerError};

pub fn load(data: &DataDir) -> Result<Authorities, ServerError> {
    let path = data.path(AUTHORITIES_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let reason = "it holds no certificate authorities".to_owned();
            Authorities::from_bytes(&bytes).ok_or(ServerError::Damaged { path, reason })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Authorities::from_files(|name| {
            let path = data.path(name);
            fs::read_to_string(&path).map_err(ServerError::io("read", path))
        }),
        Err(error) => Err(ServerError::io("read", path)(error)),
    }
}

pub fn save(authorities: &Authorities, data: &DataDir) -> Result<(), ServerError> {
    authorities.to_files().iter().try_for_each(|(name, content)| data.write(name, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_also_without_the_file_that_has_all() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let made = Authorities::generate("c").unwrap();
        save(&made, &data).unwrap();
        assert_eq!(load(&data).unwrap().to_bytes(), made.to_bytes());
        fs::remove_file(data.path(AUTHORITIES_FILE)).unwrap();
        assert_eq!(load(&data).unwrap().to_bytes(), made.to_bytes());
        fs::write(data.path(AUTHORITIES_FILE), "{}").unwrap();
        assert!(matches!(load(&data), Err(ServerError::Damaged { .. })));
    }
}
