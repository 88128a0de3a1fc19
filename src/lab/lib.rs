//! regent-lab
