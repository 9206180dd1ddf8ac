"""Operations: the only writers of state."""
