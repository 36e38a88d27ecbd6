"""Text-to-SQL for tuneforge: `task_recipe=text_to_sql` and `data=sql_questions`."""
