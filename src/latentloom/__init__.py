"""LatentLoom: study and adapt how Wan 2.x video diffusion models listen to text."""
