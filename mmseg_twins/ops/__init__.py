"""Operations that the models are made of."""
