"""What the generator is trained against: adversarial loss, scale consistency, augmentation, schedules."""
