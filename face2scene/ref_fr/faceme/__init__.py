"""FaceMe, the reference-based face restorer of Stage I (supplement 2.3)."""
