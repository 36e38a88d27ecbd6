"""What each verb does; a verb's module is imported when it is typed."""
