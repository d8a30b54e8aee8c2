"""How requests are paced: arithmetic, one seller's pace in process, the client id's allowance from PostgreSQL."""
